"""How typer shows the declaration of an option, and the options that several commands have.

A command takes its own options in its signature, and as `**flags` those of RUN_OPTIONS that name
it among their roles; a flag that was not given is not passed.
"""

import contextlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from manychar.fleet.launch_options import RUN_OPTIONS, RUNNING, Reporting
from manychar.network.client_identity import KEY_FILE_VARIABLE
from manychar.network.keys import ClientKey
from manychar.numerics.option import Option, OptionError, checked, flag, options_of, without_none
from manychar.observability.sampling_options import Sampling
from manychar.processes import log
from manychar.processes.errors import path_given

DEFINING = "What is trained (the weights depend on these options and on nothing else)"
OPERATING = "How it is trained"
PATH: Any = type("path", (Path,), {})  # help texts show its name, as those of int and float
LOGGING = (log.LEVEL_VARIABLE, log.FORMAT_VARIABLE)


def argument(metavar: str, text: str, kind: type = str) -> Any:
    """Return an argument of a command as typer takes it."""
    parser = path_parser(metavar, kind)
    return typer.Argument(metavar=metavar, help=text, show_default=False, parser=parser)


def path_parser(name: str, kind: type = Path) -> Callable[[object], Any]:
    """Return the parser of a path, which refuses what cannot be one."""

    def parse(value: object) -> Any:
        try:
            path = path_given(name, value)
            with contextlib.suppress(OSError):
                Path(path).lstat()
        except TypeError:  # a number in a TOML file
            raise typer.BadParameter("not a string") from None
        except ValueError as error:  # a null byte or a lone surrogate, there or by the API
            raise typer.BadParameter(str(error)) from None
        return kind(path)

    return parse


FILES = "UTF-8 text files, also .gz, .xz or .zst, joined; - is standard input. Without TEXT:"
_TEXT = argument("TEXT", f"{FILES} the language reference that ships with Python.", Path)
TextFiles = Annotated[list[Path] | None, _TEXT]
Endpoint = Annotated[str, argument("ENDPOINT", "The server's endpoint: tcp://HOST:PORT.")]
Source = Annotated[str, argument("SOURCE", "Run directory, checkpoint, or a server's endpoint.")]
Watched = Annotated[str, argument("SOURCE", "A server's endpoint, or its run directory.")]
Run = Annotated[Path, argument("RUN", "Run directory.", Path)]

_KEY = Option(
    "File with this machine's key ($MANYCHAR_KEY: the key).",
    names=("--key",),
    variable=KEY_FILE_VARIABLE,
)
Key = Annotated[ClientKey | None, _KEY]
KeyFile = Annotated[Path | None, _KEY]
Insecure = Annotated[bool, options_of(Reporting)["insecure"][1]]
Child = Annotated[bool, Option("This process has a supervisor.", hidden=True)]
ConnectTimeout = Annotated[float, options_of(Sampling)["connect_timeout"][1]]
AsJson = Annotated[bool, Option("Print JSON.", names=("--json",))]
Output = Annotated[Path, Option("File to write.", names=("--output", "-o"))]


def command_parameters(command: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return a command's parameters as typer reads them, all keyword-only."""
    found = []
    for parameter in inspect.signature(command).parameters.values():
        metadata = getattr(parameter.annotation, "__metadata__", (None,))[0]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            has_panels = command.__name__ in (*RUNNING, "equivalence")
            defining, operating = (DEFINING, OPERATING) if has_panels else (None, None)
            for field, option in options_of(*RUN_OPTIONS, role=command.__name__).values():
                name, kind, shown = field.name, field.type, field.default
                panel = defining if "equivalence" in option.roles else operating
                found.append(parameter_of(name, kind, option, None, shown=shown, panel=panel))
        elif isinstance(metadata, Option):
            kind, default = get_args(parameter.annotation)[0], parameter.default
            found.append(parameter_of(parameter.name, kind, metadata, default, shown=default))
        else:
            found.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    return found


def parameter_of(
    name: str, kind: Any, option: Option, default: Any, *, shown: Any, panel: Any = None
) -> inspect.Parameter:
    """Return an option as typer reads it; `shown` is the default in its help text."""
    plain, names = _plain(kind), option.names or (flag(name),)
    default_text = "" if shown in (None, inspect.Parameter.empty) or shown is False else str(shown)
    notes = [option.without or default_text, f"${option.variable}" if option.variable else ""]
    words, choices = "; ".join(filter(None, notes)), "|".join(get_args(plain))
    is_checked = bool(choices) or plain in (int, float, str)
    metavar = {bool: "", str: None}.get(plain, f"<{choices or plain.__name__}>")
    parser: Any = (lambda value: value) if is_checked else None  # for a message in our words
    if plain is Path:
        plain, metavar, parser = PATH, "<path>", path_parser(names[0])
    declaration = typer.Option(
        *names,
        help=f"{option.help} \\[{words}]" if words else option.help,
        show_default=False,
        envvar=option.variable,
        show_envvar=False,
        rich_help_panel=panel,
        hidden=option.hidden,
        metavar="<level>" if name == "log_level" else metavar,  # its words would cut flags' names
        parser=parser,
        autocompletion=(lambda: get_args(plain)) if choices else None,
        callback=(lambda c, p, value: _checked(c, p, value, plain, option)) if is_checked else None,
    )
    annotation: Any = Annotated[plain | None if default is None else plain, declaration]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=annotation)


def _plain(kind: Any) -> Any:
    """Return an option's type without None, as it is given: a key by its file's path."""
    return Path if kind == ClientKey | None else without_none(kind)


def _checked(context: Any, parameter: Any, value: Any, kind: Any, option: Option) -> Any:
    """Return a value as its type has it, within its bounds. Raises BadParameter."""
    if value is None:
        return None
    has_type = context.get_parameter_source(parameter.name).name == "DEFAULT_MAP"  # a TOML file's
    if isinstance(value, str) and kind in (int, float) and not has_type:
        with contextlib.suppress(ValueError):
            value = kind(value)
    try:
        value = checked((option.names or (parameter.name,))[0].lstrip("-"), value, kind, option)
    except OptionError as error:
        by = option.variable if value == os.environ.get(option.variable or "") else None
        raise typer.BadParameter(f"{error} (by ${by})" if by else str(error)) from None
    if option.variable in LOGGING:
        os.environ[option.variable] = value
        log.configure()
    return value
