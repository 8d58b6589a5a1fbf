"""The most memory that the server and a worker of a run had resident, from /proc."""

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.asking import SideError
from tests.benchmarks.plan import Plan
from tests.benchmarks.running import PATIENCE, Process, operation

STEPS = 6
POLL = 0.01
ROLES = ("server", "worker")


def peaks(plan: Plan, hidden: int) -> dict[str, float]:
    """Return MiB of each role in a run of a few steps, H `hidden`, its last checkpoint included."""
    found = dict.fromkeys(ROLES, 0.0)
    with tempfile.TemporaryDirectory(dir=plan.scratch) as folder:
        arguments = [
            *("manychar", "train", str(plan.text), "--workers", "1", "--streams", "16"),
            *("--hidden", str(hidden), "--numerics", "native"),
            *operation(Path(folder) / "run", steps=STEPS),
        ]
        with Process(arguments) as fleet:
            deadline = time.monotonic() + PATIENCE
            while fleet.process.poll() is None:
                for role, peak in _of_children(fleet.process.pid):
                    found[role] = max(found[role], peak)
                if time.monotonic() > deadline:
                    raise SideError(f"{STEPS} steps at H {hidden} took over {PATIENCE:.0f} s")
                time.sleep(POLL)
            fleet.until_it_ends()
    return found


def _of_children(parent: int) -> Iterator[tuple[str, float]]:
    """Yield (role, peak in MiB) of each child that is there."""
    for child in children(parent):
        words = read(Path(f"/proc/{child}/cmdline")).split("\0")
        peak = re.search(r"VmHWM:\s+(\d+) kB", read(Path(f"/proc/{child}/status")))
        for role in ROLES:
            if peak and role in words:
                yield role, int(peak[1]) / 1024


def children(parent: int) -> list[int]:
    """Return the processes that a process has started, and that are there."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for task in tasks for child in read(task).split()]


def read(path: Path) -> str:
    """Return what a file of /proc says, or nothing where its process has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
