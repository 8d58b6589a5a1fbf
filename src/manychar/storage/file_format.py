"""The format of a run directory: its version, checked before anything else that a file holds."""

from pathlib import Path

from manychar.processes.errors import UserError

CONFIG_NAME = "config.json"
FORMAT_VERSION = 2
READERS = {1: "0.1.0"}  # which version of manychar reads an older format


def check_format(path: Path, found: object) -> None:
    """Raise UserError unless a file is of the format that this version reads."""
    if type(found) is int and found == FORMAT_VERSION:
        return
    reader = READERS.get(found) if isinstance(found, int) else None
    hint = f"; install manychar {reader} to read it" if reader else ""
    raise UserError(f"{path}: format {found!r}: this version reads format {FORMAT_VERSION}{hint}")
