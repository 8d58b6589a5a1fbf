"""Lines for a person, on standard error; text as it is drawn, on standard output."""

import contextlib
import os
import sys


def say(text: str) -> None:
    """Print one line on standard error."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def nothing(_: object) -> None:
    """Stand for a screen that nobody watches."""


def write(text: str) -> None:
    """Write text on standard output, at once; end where whoever reads it has enough."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
