"""Errors that a user can cause, such as a missing package, and exit codes."""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator

from manychar.processes.log import logger
from manychar.protocol import effects

BAD_INPUT = 2
RUN_FAILED, STOPPED = effects.RUN_FAILED, effects.STOPPED
CRASHED = 70  # by an exception that is a fault of this program: a supervisor starts it again
REFUSED_FOR_SAFETY = 78
INTERRUPTED = 130
RAISE_LIMITS = "the limit of memory or processes is too small: see `ulimit -a`"
DISK_FULL = errno.ENOSPC, errno.EDQUOT
DISK_FAULTS = *DISK_FULL, errno.EIO
INSTEAD = {**dict.fromkeys(DISK_FULL, "make room on the disk"), errno.EFBIG: "see `ulimit -f`"}
TOO_LITTLE = errno.EAGAIN, errno.ENOMEM  # of processes, threads or memory


class UserError(Exception):
    """Ends the program with one line on stderr (what, where, what to do) and an exit code."""

    def __init__(self, message: str, *, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def path_given(name: str, value: object) -> str:
    """Return the path that a flag or an argument gives. Raises TypeError and UserError."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {value!r:.40}; allowed: str or Path")
    if not (path := os.fspath(value)):  # Path would make it the working directory
        raise UserError(f"{name}: it is empty")
    return path


def stopping(number: int) -> str:
    """Return what happens at a signal that stops; only a terminal's keys can be pressed again."""
    again = "; press again to exit immediately" if number == signal.SIGINT else ""
    return f"stopping: the step is ended and a checkpoint written{again}"


def because(error: OSError) -> str:
    """Return the operating system's reason without the path, to go on with in a sentence."""
    reason = (error.strerror or str(error)).split(" (while ")[0]  # create_server's own addition
    return reason[:1].lower() + reason[1:]


def code_of(error: OSError) -> int:
    """Return the exit code: the same command succeeds on a repaired machine, or never."""
    return RUN_FAILED if error.errno in (*DISK_FAULTS, *TOO_LITTLE) else BAD_INPUT


@contextlib.contextmanager
def user_errors(what: object, advice: str = "") -> Iterator[None]:
    """Raise UserError for an OSError inside this: what it happened to, why, and what to do."""
    try:
        yield
    except OSError as error:
        advised = INSTEAD.get(error.errno or 0, advice)
        text = "; ".join(filter(None, [f"{what}: {because(error)}", advised]))
        raise UserError(text, code=code_of(error)) from None


def start_thread(thread: threading.Thread) -> None:
    """Start a thread that this process cannot do without."""
    try:
        thread.start()
    except RuntimeError as error:
        logger.error(f"manychar: {error}: {RAISE_LIMITS}")
        raise SystemExit(RUN_FAILED) from None


@contextlib.contextmanager
def needing(extra: str, what: str, package: str = "") -> Iterator[None]:
    """Raise UserError for an import inside this that needs a package of `manychar[extra]`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "manychar":
            raise
        needs = f"{what} needs {package or error.name}, which is not installed"
        raise UserError(f"{needs}: pip install 'manychar[{extra}]'") from None
