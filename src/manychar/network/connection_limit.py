"""How many files this process may have open: as many as it can get, and what to do near the limit.

Every connection is one. A stranger can open connections without end; the server must not run out of
files to write checkpoints with. So near the limit nobody else is let in until there is room again.
"""

import contextlib
import resource
from pathlib import Path

KEPT_FREE = 64
_OPEN = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")


def raise_limit() -> None:
    """Take as many open files as this user may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS gives no more than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """Return how many files may be open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def is_crowded(*, already: bool) -> bool:
    """Whether no more connections are to be taken; `already` says that none are: then with room."""
    most = limit()
    kept_free = min(KEPT_FREE, most // 4)
    try:
        opened = sum(1 for _ in _OPEN.iterdir())
    except OSError:  # not even this can be opened
        return True
    return opened > (most - 2 * kept_free if already else most - kept_free)
