"""Study: what a step of a fleet costs each thread, as the system's scheduler counted it."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.memory import ROLES, children, read
from tests.benchmarks.plan import MissingError, Plan
from tests.benchmarks.running import Process, metrics, operation, watched
from tests.benchmarks.tables import number, table

HEAD = ("--delay", "thread", "on a core, µs a step", "ready, but waiting for a core, µs a step")
FLAGS = ("--workers", "2", "--shards", "2", "--streams", "64", "--numerics", "native")
NANOSECONDS_A_MICROSECOND = 1e3


def run(plan: Plan) -> Iterator[str]:
    """Yield the table for delays 0 and 1."""
    if not Path("/proc/self/schedstat").exists():
        raise MissingError("this system has no /proc/PID/schedstat")
    rows = []
    for delay in ("0", "1"):
        for thread, on_core, waiting in _profile(plan, delay):
            rows.append((delay, thread, number(on_core), number(waiting)))
    yield "Where a step goes, H 100, B 64, S 2, server and 2 workers:\n"
    yield table(HEAD, rows)


def _profile(plan: Plan, delay: str) -> Iterator[tuple[str, float, float]]:
    with tempfile.TemporaryDirectory(dir=plan.scratch) as folder:
        run_dir = Path(folder) / "run"
        flags = [*FLAGS, "--delay", delay, *operation(run_dir)]
        with Process(["manychar", "train", str(plan.text), *flags]) as fleet:
            next(watched(run_dir, [fleet]))
            before, first = _times(fleet.process.pid), metrics(run_dir)[-1]
            time.sleep(4 * plan.seconds)
            after, last = _times(fleet.process.pid), metrics(run_dir)[-1]
    steps = last["step"] - first["step"]
    for thread in sorted(after):
        spent = [b - a for a, b in zip(before[thread], after[thread], strict=True)]
        on_core, waiting = (value / steps / NANOSECONDS_A_MICROSECOND for value in spent)
        if on_core >= 1:
            yield thread, on_core, waiting


def _times(parent: int) -> dict[str, tuple[int, int]]:
    """Return (ns on a core, ns ready and waiting) of each thread of the server and the workers."""
    numbers = Counter[str]()
    found: dict[str, tuple[int, int]] = {}
    for child in children(parent):
        words = read(Path(f"/proc/{child}/cmdline")).split("\0")
        for role in set(ROLES) & set(words):
            numbers[role] += 1
            name = role if role == "server" else f"{role} {numbers[role]}"
            for task in sorted(Path(f"/proc/{child}/task").iterdir()):
                kind = "input and output" if "ZMQbg/IO" in read(task / "comm") else "main"
                if "Reaper" in read(task / "comm") or not (times := read(task / "schedstat")):
                    continue
                on_core, waiting, _ = map(int, times.split())
                before = found.get(f"{name}, {kind}", (0, 0))
                found[f"{name}, {kind}"] = before[0] + on_core, before[1] + waiting
    return found
