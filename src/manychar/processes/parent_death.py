"""Ends a child process when its parent has ended, however that happened.

Each ChildProcess has the reading end of a pipe, named in the environment. Nothing is written to it:
end of file means that the operating system has closed the parent's end.
"""

import ctypes
import os
import shutil
import signal
import sys
import threading
import time

from manychar.processes.errors import start_thread
from manychar.processes.log import logger

VARIABLE = "MANYCHAR_PARENT_PIPE"
DIRECTORY = "MANYCHAR_PARENT_DIRECTORY"  # its temporary directory, which SIGKILL leaves behind
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
REMOVED_WITHIN = 1.0  # seconds; where its disk hangs, this process ends all the same
GRACE = 20.0  # seconds, more than a server needs to end its step and write a checkpoint

_is_gone = threading.Event()


def has_parent() -> bool:
    """Whether a process of this program started this one, and ends it."""
    return VARIABLE in os.environ


def end_with_parent() -> None:
    """Have this process stop as by SIGTERM when its parent ends, and end after a grace period.

    The variables stay in the environment: an `exec` of this process keeps its parent.
    """
    if has_parent():
        if sys.platform == "linux":  # one that SIGSTOP has stopped could notice nothing
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
        pipe = int(os.environ[VARIABLE])
        start_thread(threading.Thread(target=_wait, args=(pipe,), name="parent-death", daemon=True))


def stopped_by(number: int) -> str:
    """Return what has stopped this process, which got this signal."""
    if _is_gone.is_set():
        return "stopped because its parent process is gone"
    return f"stopped by {signal.Signals(number).name}"


def _wait(pipe: int) -> None:
    os.read(pipe, 1)
    _is_gone.set()
    logger.warning("the process that started this one is gone: stopping")
    if directory := os.environ.get(DIRECTORY):
        removal = threading.Thread(target=shutil.rmtree, args=(directory, True), daemon=True)
        removal.start()
        removal.join(REMOVED_WITHIN)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
