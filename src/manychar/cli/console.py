"""Lines for a person, on standard error; text as it is drawn, on standard output."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from manychar.processes.errors import UserError, because


def program() -> str:
    """Return this program as it can be called again from here."""
    called = Path(sys.argv[0])
    by_path = called.name == "manychar" and shutil.which("manychar") is None
    return shlex.quote(str(called)) if by_path else "manychar"


def write(text: str) -> None:
    """Write text on standard output at once; exit where its reader has closed it.

    Raises UserError where it cannot be written.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        raise UserError(f"standard output: {because(error)}") from None
