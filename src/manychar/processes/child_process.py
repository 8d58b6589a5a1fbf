"""A child process of this program, and the lines that it writes."""

import contextlib
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence

from manychar.processes import parent_death, signals
from manychar.processes.errors import RAISE_LIMITS, user_errors

PIECE_BYTES = 65_536
PROGRAM = (sys.executable, "-P", "-m", "manychar")
_CHILDREN: weakref.WeakSet["ChildProcess"] = weakref.WeakSet()


class Lines:
    """Reads a pipe without blocking, and hands over each whole line as it comes."""

    def __init__(self, descriptor: int, on_line: Callable[[str], object]) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.ended = False
        self._on_line = on_line
        self._rest = b""

    def read(self) -> bool:
        """Hand over what one read brings; return whether there may be more."""
        try:
            piece = os.read(self.descriptor, PIECE_BYTES)
        except BlockingIOError:
            return False
        self.ended = not piece
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if self.ended and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            self._on_line(line.decode(errors="replace"))
        return not self.ended


class ChildProcess(subprocess.Popen[bytes]):
    """A child that runs this program, its standard error in a pipe; it ends with its parent.

    The child has a session of its own, so Ctrl-C on a terminal reaches the parent alone. `env` is
    added to the environment.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(3):  # or a pipe gets a standard descriptor, where one is closed here
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            child_pipe, self.parent_pipe = os.pipe()
            stack.callback(os.close, child_pipe)
            blocked = (signal.SIGINT, signal.SIGTSTP, signal.SIGCONT)  # until it handles them
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            try:
                with user_errors("cannot start a process", RAISE_LIMITS):
                    super().__init__(
                        [*PROGRAM, *arguments],
                        stdin=stdin,
                        stdout=stdout,
                        stderr=subprocess.PIPE,
                        env={
                            **os.environ,
                            parent_death.DIRECTORY: "",  # not that of this process's own parent
                            **(env or {}),
                            parent_death.VARIABLE: str(child_pipe),
                        },
                        pass_fds=(child_pipe,),
                        start_new_session=True,
                    )
            except BaseException:
                os.close(self.parent_pipe)
                raise
            _CHILDREN.add(self)

    def close(self) -> None:
        os.close(self.parent_pipe)
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def pause_on_sigtstp() -> None:
    """From now on, Ctrl-Z and SIGTSTP pause this process with its children, until SIGCONT.

    In a session of its own SIGTSTP would have no effect. So a child waits for SIGCONT: that is
    blocked from its start, so that one which comes early is kept. So is SIGINT, until here.
    """
    signals.handle(signal.SIGTSTP, by=_pause)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTSTP))


def _pause(*_: object) -> None:
    children = list(_CHILDREN)
    for child in children:
        child.send_signal(signal.SIGTSTP)
    if parent_death.has_parent():
        signal.sigwait((signal.SIGCONT,))
    else:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, _pause)
    for child in children:
        child.send_signal(signal.SIGCONT)


def how_it_ended(code: int) -> str:
    """Return an exit code in words."""
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
