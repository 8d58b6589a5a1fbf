"""--config and --print-config: what a command's flags can say, from a TOML file and as one.

A key is a flag's name, with - or _. What stands on the command line or in the environment goes
before the file, and the file before the defaults.
"""

import dataclasses
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
from manychar.processes.errors import UserError, because
from manychar.processes.numerics_pinning import pin

OWN = ("config", "print_config")
LARGEST_CONFIG = 2**20


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Take what a file says for what the user did not. Raises UserError."""
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
            near = difflib.get_close_matches(name, flags, 1)
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
        help="A TOML file that says what flags can say: hidden = 200.",
        is_eager=True,
        callback=_read,
        show_default=False,
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print such a file of what would be done, and end.")
]


def configurable(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --config and --print-config."""
    signature = inspect.signature(command)
    added = {"config": (Config, None), "print_config": (PrintConfig, False)}

    @functools.wraps(command)
    def wrapped(context: typer.Context, **values: Any) -> None:
        values.pop("config")
        if values.pop("print_config"):
            write(_as_toml(context))
            return
        command(**values)

    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()),
        *(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for name, (kind, default) in added.items()
        ),
    ]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _as_toml(context: typer.Context) -> str:
    """Return every flag's value; one that has none is shown as a comment."""
    defaults, lines = _defaults(context), []
    for parameter in context.command.params:
        if not _is_shown(parameter):
            continue
        name, value = _key(parameter), context.params.get(parameter.name or "")
        value = defaults.get(parameter.name or "") if value is None else value
        empty = value is None or value == []
        lines.append(f"# {name} =" if empty else f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _defaults(context: typer.Context) -> dict[str, Any]:
    """Return what a flag that was not given comes to, where that is known before the run is.

    Only a command that defines a new run has such flags; one that is resumed is what it was.
    """
    if "hidden" not in context.params or context.params.get("resume") is not None:
        return {}
    pin("portable")
    from manychar.numerics.run_definition import Definition
    from manychar.protocol.run_spec import Operation

    fields = (*dataclasses.fields(Definition), *dataclasses.fields(Operation))
    known = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return {name: value for name, value in known.items() if name != "workers"}


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))
