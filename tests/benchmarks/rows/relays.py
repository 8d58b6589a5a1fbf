"""What relays save the server, and what they cost on one machine: workers that compute nothing."""

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.idle_fleet import IdleFleet
from tests.benchmarks.plan import MissingError, Plan
from tests.benchmarks.running import growth

SIZES = ((32, 4), (64, 8))


def run(plan: Plan) -> Iterator[str]:
    """Yield the table: steps a second, and µs on a core a step."""
    if not Path("/proc/self/schedstat").exists():
        raise MissingError("this system has no /proc/PID/schedstat")
    yield (
        "H 100, a shard a worker, B 1, all on this machine; main threads, µs on a core a step:\n\n"
        "| idle workers | relays | steps a second | server | all relays | all workers |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for workers, most in SIZES:
        task = plan.task(numerics="portable", shards=workers, streams=1)
        for relays in (0, most):
            fleet = IdleFleet(plan, task, workers, relays=relays)
            rounds = [figures(fleet) for _ in range(plan.rounds)]
            speed, *times = (statistics.median(each) for each in zip(*rounds, strict=True))
            cells = [f"{speed:.1f}", *(f"{time:,.0f}" for time in times)]
            yield f"| {workers} | {relays} | {' | '.join(cells)} |"


def figures(fleet: IdleFleet) -> tuple[float, float, float, float]:
    """Return steps a second, and the times of the server, all relays and all workers."""
    with contextlib.ExitStack() as stack:
        run_dir, processes = fleet.started(stack)
        pids = [each.process.pid for each in processes]
        grown, before, after = growth(
            run_dir, processes, fleet.plan.seconds, read=lambda: list(map(_on_core, pids))
        )
    times = [(b - a) / grown["step"] / 1e3 for a, b in zip(before, after, strict=True)]
    first = 1 + fleet.relays
    return grown["step"] / grown["seconds"], times[0], sum(times[1:first]), sum(times[first:])


def _on_core(pid: int) -> int:
    """Return for how many ns a process's main thread was on a core."""
    schedstat = Path(f"/proc/{pid}/task/{pid}/schedstat")
    return int(schedstat.read_text(encoding="ascii").split()[0])
