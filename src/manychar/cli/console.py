"""Lines for a person, on standard error; text as it is drawn, on standard output."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from manychar.processes.errors import INTERRUPTED, STOPPED
from manychar.processes.log import logger
from manychar.processes.queued_stream import QueuedStream, queued
from manychar.processes.subcommand import is_by_api

STANDARD_OUTPUT = "standard output"


def log_failure(reason: str, code: int) -> int:
    """Log why a command ends with a code other than 0: no error if that was asked for."""
    asked = code in (STOPPED, INTERRUPTED) and not is_by_api()  # which reads the line's level
    logger.log(logging.INFO if asked else logging.ERROR, f"manychar: {reason}")
    return code


def write(text: str) -> None:
    """Write text on standard output at once. Raises OSError with its name.

    What was logged before comes first, but where nothing waits for standard output either.
    """
    if isinstance(sys.stderr, QueuedStream) and not isinstance(sys.stdout, QueuedStream):
        sys.stderr.wait()
    with output_named():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextlib.contextmanager
def queued_output() -> Iterator[None]:
    """Queue data that is written inside this. Raises OSError where some could not be written."""
    with queued("stdout"):
        yield
        if isinstance(sys.stdout, QueuedStream):
            sys.stdout.wait()
            with output_named():
                sys.stdout.check()


@contextlib.contextmanager
def output_named() -> Iterator[None]:
    """Give an OSError inside this the name of standard output."""
    try:
        yield
    except OSError as error:
        error.filename = STANDARD_OUTPUT
        raise


def discard_output() -> None:
    """Let what standard output could not take go nowhere: it is flushed again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
