"""How many connections a server takes: near the limit of open files it stops listening for a while.

Every connection is an open file, and anyone can open connections; files have to be left to write
checkpoints with.
"""

import contextlib
import resource
from pathlib import Path

from manychar.processes.errors import UserError

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


def why_no_more(*, is_full: bool) -> str:
    """Return why no more connections can be accepted, or nothing.

    With `is_full`, none are accepted now, and there has to be twice the room.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    kept_free = min(KEPT_FREE, most // 4) * (2 if is_full else 1)
    try:
        is_reached = sum(1 for _ in _OPEN.iterdir()) > most - kept_free
    except OSError:  # not even this one can be opened
        is_reached = True
    return f"too many connections for {most:,} open files" if is_reached else ""
