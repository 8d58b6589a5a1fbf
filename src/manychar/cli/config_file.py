"""--config and --print-config: a command's flags from a TOML file, and as one.

A key is a flag's name, with - or _. The command line and the environment take precedence over the
file, and the file over the defaults.
"""

import difflib
import functools
import inspect
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from manychar.cli.console import write
from manychar.cli.options import RUN_OPTIONS, command_parameters
from manychar.numerics.option import Formula, options_of
from manychar.processes.errors import UserError, because

OWN = ("config", "print_config")
LARGEST_CONFIG = 2**20
RENAMED = {"patience": "connect_timeout"}


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file give the flags that the user did not. Raises UserError."""
    if path is not None:
        flags = {_key(p): p for p in context.command.params if _is_shown(p)}
        context.default_map = {**(context.default_map or {}), **_values(path, flags)}
    return path


def from_file(context: typer.Context | None, parameter: Any) -> str:
    """Return "FILE: key = value: " of a flag whose value came from a file; nothing of another."""
    name = getattr(parameter, "name", None)
    if context is None or name is None:
        return ""
    source = context.get_parameter_source(name)
    if source is None or source.name != "DEFAULT_MAP":
        return ""
    value = _toml(context.lookup_default(name))
    return f"{context.params['config']}: {_key(parameter)} = {value}: "


def _values(path: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = tomllib.loads(file.read(LARGEST_CONFIG).decode())
    except OSError as error:
        raise UserError(f"{path}: {because(error)}; give the path of a TOML file") from None
    except ValueError as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    values = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in flags:
            near = [RENAMED.get(name), *difflib.get_close_matches(name, flags, 1)]
            near = [each for each in near if each in flags]
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{path}: {key} is no flag of this command{hint}")
        if isinstance(value, bool) and not getattr(flags[name], "is_bool_flag", False):
            raise UserError(f"{path}: {key} = {_toml(value)}: this flag takes a value")
        values[flags[name].name] = value
    return values


def _key(parameter: Any) -> str:
    """Return a flag's name as a key; an argument's is its own."""
    longest = max(parameter.opts, key=len)
    return str(longest.lstrip("-").replace("-", "_"))


def _is_shown(parameter: Any) -> bool:
    return parameter.name not in (*OWN, "help") and not getattr(parameter, "hidden", False)


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="PATH",
        help="TOML file that sets flags: hidden = 200.",
        is_eager=True,
        callback=_read,
        show_default=False,
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config",
        metavar=" ",
        help="Print the flags' values as such a file, and exit.",
        show_default=False,
    ),
]


def configurable(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command as typer takes it: with its options, --config and --print-config."""
    own = command_parameters(command)
    optional = {p.name for p in own} - inspect.signature(command).parameters.keys()

    @functools.wraps(command)
    def wrapped(context: typer.Context, **values: Any) -> None:
        if values["print_config"]:
            write(_as_toml(context))
            return
        given = {
            name: value
            for name, value in values.items()
            if name not in OWN and (value is not None or name not in optional)
        }
        command(**given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *own,
        inspect.Parameter("config", keyword, default=None, annotation=Config),
        inspect.Parameter("print_config", keyword, default=False, annotation=PrintConfig),
    ]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _as_toml(context: typer.Context) -> str:
    """Return every flag's value; one that has none, or a formula, is shown as a comment."""
    lines = []
    for parameter in context.command.params:
        if not _is_shown(parameter):
            continue
        name, value = _key(parameter), context.params.get(parameter.name or "")
        value = _defaults(context).get(parameter.name or "") if value is None else value
        if isinstance(value, Formula):
            lines.append(f"# {name} = {value.text}")
        else:
            lines.append(f"# {name} =" if value in (None, []) else f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _defaults(context: typer.Context) -> dict[str, Any]:
    """Return the defaults of a new run's options; a run that is resumed has its own values."""
    if "hidden" not in context.params or context.params.get("resume") is not None:
        return {}
    return {name: field.default for name, (field, _) in options_of(*RUN_OPTIONS).items()}


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))
