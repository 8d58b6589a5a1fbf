"""Lines for a person, on standard error; text as it is drawn, on standard output."""

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """Return this program as it can be called again from here."""
    called = Path(sys.argv[0])
    by_path = called.name == "manychar" and shutil.which("manychar") is None
    return shlex.quote(str(called)) if by_path else "manychar"


def write(text: str) -> None:
    """Write text on standard output at once. Raises OSError with its name."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        raise
