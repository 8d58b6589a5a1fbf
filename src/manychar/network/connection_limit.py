"""How many connections a server takes: near the limit of open files it stops listening for a while.

Every connection is an open file, and anyone can open connections; files have to be left to write
checkpoints with.
"""

import contextlib
import resource
from collections.abc import Callable
from pathlib import Path

import zmq

from manychar.processes.errors import UserError
from manychar.processes.log import logger

Bind = Callable[[str], object]

KEPT_FREE = LEAST = 64
_OPEN = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")


def need_files(role: str) -> None:
    """Allow this process at least LEAST open files. UserError: this user may not have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < LEAST:  # below 0 there is no limit
        raise UserError(f"{hard} open files are too few for {role}: `ulimit -n {LEAST}` or more")
    if 0 <= soft < LEAST:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST, hard))


def raise_limit() -> None:
    """Allow this process as many open files as this user may have. UserError: they are too few."""
    need_files("a server")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS gives no more than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class ConnectionLimit:
    """Unbinds a socket while too many files are open, and binds it again when there is room."""

    def __init__(self, unbind: Bind, bind: Bind, endpoint: str) -> None:
        self._unbind, self._bind, self._endpoint = unbind, bind, endpoint
        self._is_reached = False
        self._logged = ""

    def enforce(self) -> None:
        """Stop listening, or listen again, by how many files are open now."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        kept_free = min(KEPT_FREE, most // 4) * (2 if self._is_reached else 1)
        try:
            is_reached = sum(1 for _ in _OPEN.iterdir()) > most - kept_free
        except OSError:  # not even this one can be opened
            is_reached = True
        if is_reached == self._is_reached:
            return
        try:
            (self._unbind if is_reached else self._bind)(self._endpoint)
        except (zmq.ZMQError, UserError) as error:
            self._log(f"{error}: trying again")
            return
        self._is_reached = is_reached
        if is_reached:
            self._log(f"too many connections for {most:,} open files: no more are accepted")
        else:
            self._log("there is room for connections again: they are accepted")

    def _log(self, line: str) -> None:
        if line != self._logged:
            logger.warning(line)
        self._logged = line
