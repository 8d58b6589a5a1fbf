"""The format of a run directory: its version, checked before anything else that a file holds."""

import json
from pathlib import Path

from manychar.processes.errors import UserError

CONFIG_NAME = "config.json"
FORMAT_VERSION = 4
READERS = {1: "0.1.0", 2: "0.2.0", 3: "0.3.0"}  # of earlier formats, the last version each


def fault_of(error: Exception) -> str:
    """Return what an error says of a file of JSON, without Python's own words."""
    if isinstance(error, json.JSONDecodeError):
        fault = f"it is not JSON from line {error.lineno}, column {error.colno}, on"
        return fault if error.doc.strip() else "it is empty"
    if isinstance(error, TypeError | AttributeError):
        unknown = str(error).partition("unexpected keyword argument ")[2]
        return f"{unknown} is unknown" if unknown else "its values are not those of a run"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def check_format(path: Path, found: object) -> None:
    """Raise UserError unless a file is of the format that this version reads."""
    if found != FORMAT_VERSION:
        reader = READERS.get(found) if isinstance(found, int) else None
        hint = f"; install manychar {reader} to read it" if reader else ""
        reads = f"this version reads format {FORMAT_VERSION}"
        raise UserError(f"{path}: format {found!r}: {reads}{hint}")
