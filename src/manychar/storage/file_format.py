"""The format of a run directory: its version, checked before anything else that a file holds."""

from pathlib import Path

from manychar.processes.errors import UserError

CONFIG_NAME = "config.json"
FORMAT_VERSION = 4
READERS = {1: "0.1.0", 2: "0.2.0", 3: "0.3.0"}  # of earlier formats, the last version each


def check_format(path: Path, found: object) -> None:
    """Raise UserError unless a file is of the format that this version reads."""
    if found != FORMAT_VERSION:
        reader = READERS.get(found) if isinstance(found, int) else None
        hint = f"; install manychar {reader} to read it" if reader else ""
        reads = f"this version reads format {FORMAT_VERSION}"
        raise UserError(f"{path}: format {found!r}: {reads}{hint}")
