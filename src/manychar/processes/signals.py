"""Self-pipe: wakes the poll loop for signals, exited children and thread results.

Until there is a loop, the signals that stop a process end it at once; by an exception where there
is something to undo. Children end with their parent.
"""

import contextlib
import os
import re
import select
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from manychar.processes import log
from manychar.processes.parent_death import has_parent

SHOW_CURSOR = b"\x1b[?25h"
_OTHERS = r"SIG(TERM|HUP|QUIT|USR1|USR2|XCPU|ALRM|VTALRM|PROF|IO|POLL|STKFLT|PWR)"
_STOPPED = [each for each in signal.Signals if re.fullmatch(_OTHERS, each.name)]
STOPS: dict[int, int] = {signal.SIGINT: 130, **dict.fromkeys(_STOPPED, 75)}
"""The signals that stop a process, and its exit codes then: INTERRUPTED and STOPPED.

Engines can be told to send any: these are all that would end it and have a name on this system.
"""


def handle(*numbers: int, by: Callable[[int, Any], object]) -> dict[int, Any]:
    """Handle signals; return their earlier handlers. Ignored ones stay ignored, as by nohup."""
    ignored = {each for each in numbers if signal.getsignal(each) == signal.SIG_IGN}
    ignored -= {signal.SIGCHLD}  # a supervisor needs it
    return {each: signal.signal(each, by) for each in numbers if each not in ignored}


_last_lines: list[str] = []


def before_end_at_once(line: str) -> None:
    """Have `end_at_once` print this line."""
    _last_lines[:] = [line]


def end_at_once(number: int, _frame: object) -> None:
    """End this process, whatever it is doing: the signal handler before there is a loop."""
    with contextlib.suppress(OSError, ValueError):  # standard error is closed
        shown = SHOW_CURSOR if os.isatty(2) and os.environ.get("TERM") != "dumb" else b""
        for line in _last_lines if log.shows_info() else []:
            shown += b"\n" * os.isatty(2) + f"{log.as_line(line)}\n".encode()  # after ^C
        if select.select([], [2], [], 0)[1]:
            os.write(2, shown)  # a logger may wait for a lock that the interrupted code holds
    os._exit(STOPS[number])


def end_by_exception(number: int, _frame: object = None) -> None:
    """End this process by SystemExit: the handler where something has to be undone."""
    raise SystemExit(STOPS[number])


class SelfPipe:
    """Wakes the loop of the main thread, and holds the signals that came."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.settimeout(0)
        self._write.settimeout(0)
        self._signals: list[int] = []

    def fileno(self) -> int:
        return self._read.fileno()

    def wake(self) -> None:
        """Wake the loop; from any thread."""
        with contextlib.suppress(BlockingIOError):
            self._write.send(b"\0")

    def pop_signals(self) -> list[int]:
        """Return the signals since the last call, and be ready to sleep again."""
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass
        popped, self._signals = self._signals, []
        return popped

    @contextlib.contextmanager
    def catching(self, *signals: int) -> Iterator["SelfPipe"]:
        """Catch these signals; a second one that stops ends a process without parent at once.

        A child may get both from its parent and from a container engine that signals a whole group.
        SIGHUP does not count: a shell whose terminal closes sends it once more.
        """
        descriptor = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        before = handle(*signals, by=self._caught)
        try:
            yield self
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, _frame: object) -> None:
        self._signals.append(number)
        if number in STOPS and not has_parent():
            handle(*STOPS.keys() - {signal.SIGHUP}, by=end_at_once)

    def close(self) -> None:
        self._read.close()
        self._write.close()
