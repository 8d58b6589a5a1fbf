"""--config and --print-config: a command's flags from a TOML file, and as one.

A key is a flag's name, with - or _. The command line and the environment take precedence over the
file, and the file over the defaults.
"""

import contextlib
import functools
import inspect
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from manychar.cli.console import write
from manychar.cli.options import PATH, command_parameters, parameter_of, path_parser
from manychar.fleet.launch_options import RUN_OPTIONS, instead_of
from manychar.network.client_identity import find_key
from manychar.network.endpoints import is_endpoint
from manychar.numerics.option import Formula, Option, OptionError, options_of
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

PRINT_CONFIG = Option("Print the flags' values as such a file, and exit.")
_NOT_DECODED = re.compile("[\udc80-\udcff]")
NO_KEYS = ("config", "print_config", "help")


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file give the flags that the user did not. Raises UserError."""
    if path is not None:
        context.default_map = {**(context.default_map or {}), **_values(path, _keys(context))}
    return path


_FILE = "TOML file that sets flags: hidden = 200."
ConfigFile = Annotated[
    PATH | None,
    typer.Option(
        help=_FILE, is_eager=True, callback=_read, metavar="<path>", parser=path_parser("--config")
    ),
]


def _values(path: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's values by the parameter's name. Raises UserError and OSError."""
    try:
        found = tomllib.loads(path.read_bytes().decode())
    except ValueError as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    values = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in flags:
            instead = instead_of(name, flags)
            raise UserError(f"{path}: {key} is no flag of this command{instead}")
        if getattr(flags[name], "is_bool_flag", False) and not isinstance(value, bool):
            raise UserError(f"{path}: {key} = {_toml(value)}: allowed: true or false")
        values[flags[name].name] = value
    return values


def from_file(context: typer.Context | None, parameter: Any) -> str:
    """Return "FILE: key = value: " of a flag whose value came from a file; nothing of another."""
    source: Any = context and parameter and context.get_parameter_source(parameter.name)
    if context is None or source is None or source.name != "DEFAULT_MAP":
        return ""
    value = _toml(context.lookup_default(parameter.name))
    return f"{context.params['config']}: {_key(parameter)} = {value}: "


def _keys(context: typer.Context) -> dict[str, Any]:
    """Return a command's parameters by their keys in a file."""
    shown = (each for each in context.command.params if not getattr(each, "hidden", False))
    return {_key(each): each for each in shown if each.name not in NO_KEYS}


def _key(parameter: Any) -> str:
    """Return a flag's name as a key; an argument's is its own."""
    return str(max(parameter.opts, key=len).lstrip("-").replace("-", "_"))


def configurable(command: Callable[..., None], *, numerics: str | None) -> Callable[..., None]:
    """Return a command as typer takes it: with its options, --config and --print-config.

    Before it is called, these numerics are pinned, and the key in its key file is read. A flag
    without a value is not passed.
    """

    @functools.wraps(command)
    def wrapped(context: typer.Context, *, print_config: bool, **values: Any) -> None:
        texts = {name: _as_utf8(name, each) for name, each in values.items() if type(each) is str}
        values |= texts
        context.params |= texts
        if print_config:
            write(_as_toml(context, command.__name__))
            return
        if numerics is not None:
            pin(numerics)
        if "key" in values:
            values["key"] = find_key(values["key"])
        del values["config"]
        try:
            command(**{name: value for name, value in values.items() if value is not None})
        except (UserError, OptionError) as error:
            word = re.split("[=:, ]", str(error))[0]
            named = (each for each in context.command.params if word in (each.metavar, *each.opts))
            error.args = (from_file(context, next(named, None)) + str(error),)
            raise
        except OSError as error:  # one without a name is a help text's, which typer prints
            error.filename = error.filename or command.__name__
            raise

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *command_parameters(command),
        inspect.Parameter("config", keyword, default=None, annotation=ConfigFile),
        parameter_of("print_config", bool, PRINT_CONFIG, default=False, shown=False),
    ]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _as_utf8(name: str, value: str) -> str:
    """Return a text as UTF-8 that the locale could not decode; a path stays as files have it."""
    if name != "source" or is_endpoint(value):
        with contextlib.suppress(UnicodeError):
            return os.fsencode(value).decode() if _NOT_DECODED.search(value) else value
    return value


def _as_toml(context: typer.Context, command: str) -> str:
    """Return every flag's value; one that has none, or a formula, is shown as a comment.

    A run that is resumed has its own values: the defaults of a new one are not shown.
    """
    options = options_of(*RUN_OPTIONS, role=command)
    if context.params.get("resume") is not None:
        options = {}
    if context.params.get("init_from") is not None:  # it has its own
        options = {name: options[name] for name in options.keys() - {"hidden", "dtype"}}
    lines = []
    for name, parameter in _keys(context).items():
        value = context.params.get(parameter.name)
        if value is None and parameter.name in options:
            value = options[parameter.name][0].default
        is_set = value not in (None, []) and not isinstance(value, Formula)
        lines.append(f"{name} = {_toml(value)}\n" if is_set else f"# {name} = {value or ''}\n")
    return "".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    plain = value if isinstance(value, bool | int | float) else str(value)
    quoted = json.dumps(plain, ensure_ascii=False)  # TOML has no pairs of surrogates
    return quoted.encode(errors="backslashreplace").decode()
