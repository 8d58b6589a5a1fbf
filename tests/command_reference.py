"""The README's reference of every command and flag, made of the command line itself.

`python -m tests.command_reference` writes it between the README's two marks.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from manychar.cli.app import app

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- reference: begin -->", "<!-- reference: end -->"


def reference() -> str:
    """Return the whole reference as Markdown."""
    return "\n\n".join(_command(path, command) for path, command in commands())


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
    lines = [f"**`{usage}`** {_plain(command.help)}  \n`{_example(command)}`", ""]
    lines += [_flag(p) for p in command.params if p.param_type_name == "option" and not p.hidden]
    return "\n".join(lines).rstrip()


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).strip("[]")
    name += "..." if parameter.nargs == -1 else ""
    return name if parameter.required else f"[{name}]"


def _example(command: Any) -> str:
    return str(command.epilog or "").removeprefix("Example: ")


def _flag(parameter: Any) -> str:
    shown = parameter.show_default
    default = "" if parameter.default in (None, False, "") else f" [{_plain(parameter.default)}]"
    default = f" [{shown}]" if isinstance(shown, str) else default if shown else ""
    return f"- `{', '.join(parameter.opts)}` {_plain(parameter.help or '')}{default}"


def _plain(text: object) -> str:
    value = getattr(text, "value", text)
    return re.sub(r"\s+", " ", str(value).replace("\\[", "[")).replace("<", "&lt;").strip()


def main() -> int:
    """Write the reference into the README."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n{reference()}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
