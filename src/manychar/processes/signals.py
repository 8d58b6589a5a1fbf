"""Which signals stop a process, and what they do until there is an event loop.

They end it at once; by an exception where there is something to undo.
"""

import contextlib
import os
import re
import select
import signal
from collections.abc import Callable
from typing import Any

from manychar.processes import log
from manychar.processes.errors import INTERRUPTED, STOPPED

SHOW_CURSOR = b"\x1b[?25h"
_OTHERS = r"SIG(TERM|HUP|QUIT|USR1|USR2|XCPU|ALRM|VTALRM|PROF|IO|POLL|STKFLT|PWR)"
_OTHERS_HERE = [each for each in signal.Signals if re.fullmatch(_OTHERS, each.name)]
STOPS: dict[int, int] = {signal.SIGINT: INTERRUPTED, **dict.fromkeys(_OTHERS_HERE, STOPPED)}
"""The signals that stop a process, and its exit codes then.

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
