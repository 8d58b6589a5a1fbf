"""The reference of every command and flag in src/manychar/cli/README.md, made of the commands.

`python -m tests.command_reference` writes it.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from manychar.cli.app import app

REFERENCE = Path(__file__).parent.parent / "src" / "manychar" / "cli" / "README.md"
HEAD = """# The command line

Every command and flag, written by `python -m tests.command_reference` from the declarations in
`numerics/run_definition.py`, `protocol/run_operation.py`, `fleet/launch_options.py`,
`observability/sampling_options.py` and `cli/`. In brackets: the default, and the environment
variable that can give the value. `--config` sets any flag from a TOML file.

`--patience` of connecting is now `--connect-timeout`. `--transport` is gone: the program chooses
how the processes on one machine talk.
"""


def reference() -> str:
    """Return the whole reference as Markdown."""
    return "\n".join([HEAD, *(_command(path, command) for path, command in commands())])


def commands() -> Iterator[tuple[str, Any]]:
    """Yield (path, command) of everything that can be called, depth first."""
    yield from _below("manychar", typer.main.get_command(app))


def _below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        if child.hidden:
            continue
        yield from _below(f"{path} {name}", child)


def _command(path: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([path, *(_argument(argument) for argument in arguments)])
    lines = [f"## `{usage}`", "", _plain(command.help), "", f"    {_example(command)}", ""]
    lines += [f"- `{_argument(p)}` {_plain(p.help)}" for p in arguments]
    context = command.make_context(path, [], resilient_parsing=True)
    shown = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    lines += [_flag(p, p.display_type(context)) for p in shown]
    return "\n".join([*lines, ""])


def _argument(parameter: Any) -> str:
    name = parameter.metavar + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _example(command: Any) -> str:
    return str(command.epilog or "").removeprefix("Example: ")


def _flag(parameter: Any, kind: str) -> str:
    kind = "" if parameter.is_flag else kind
    names = f"{', '.join([*parameter.opts, *parameter.secondary_opts])} {kind}".strip()
    return f"- `{names}` {_plain(parameter.help or '')}"


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\\[", "[")).replace("<", "&lt;").strip()


def main() -> int:
    """Write the reference."""
    REFERENCE.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
