"""How many cores a process may use, by its affinity and by the CPU quotas of its cgroups."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from manychar.processes.log import logger

CGROUPS, CGROUPS_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use."""
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    return min([cores, *_quotas()])


def _quotas() -> Iterator[int]:
    """Yield the quotas of this process's cgroups and those above them, in cores, rounded up."""
    lines = CGROUPS_OF_PROCESS.read_text().splitlines() if CGROUPS_OF_PROCESS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = CGROUPS / controllers / path.strip("/")  # version 2 names no controllers
        files = ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if controllers else ["cpu.max"]
        for each in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # none there; "max"
                quota, period = map(int, " ".join((each / f).read_text() for f in files).split())
                if quota > 0:
                    yield math.ceil(quota / period)


def hint_at_cores(flag: str, processes: int) -> None:
    """Log where more processes are to compute than there are cores."""
    if processes > (cores := usable_cores()):
        logger.info(f"{flag} {processes}: no faster than {flag} {cores}, one for each usable core")
