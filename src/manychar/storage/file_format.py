"""The format of a run directory: its version, checked before anything else that a file holds."""

from pathlib import Path

from manychar.processes.errors import UserError

CONFIG_NAME = "config.json"
FORMAT_VERSION = 2


def check_format(path: Path, found: object) -> None:
    """Raise UserError unless a file is of the format that this version reads."""
    if found != FORMAT_VERSION:
        hint = "; install manychar 0.1.0 to read it" if found == 1 else ""
        reads = f"this version reads format {FORMAT_VERSION}"
        raise UserError(f"{path}: format {found!r}: {reads}{hint}")
