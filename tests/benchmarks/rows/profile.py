"""Study: what a step of a fleet costs each thread, as the system's scheduler counted it."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.idle_fleet import IdleFleet
from tests.benchmarks.plan import MissingError, Plan
from tests.benchmarks.running import Process, growth, manychar, operation, sizes, watched
from tests.benchmarks.tables import number, table

HEAD = ("", "thread", "on a core, µs a step", "ready, but waiting for a core, µs a step")
ROLES = ("server", "worker")
FLEETS = ((100, 4, 16), (100, 2, 64), (512, 4, 16))  # H, S, B
NANOSECONDS_A_MICROSECOND = 1e3

Times = dict[str, tuple[int, int]]


def run(plan: Plan) -> Iterator[str]:
    """Yield the tables: a fleet that computes, and the exchange."""
    if not Path("/proc/self/schedstat").exists():
        raise MissingError("this system has no /proc/PID/schedstat")
    yield "Where a step goes, `train --workers 2`: the server computes, and one worker:\n"
    yield table(HEAD, [row for sizes_of in FLEETS for row in _fleet(plan, *sizes_of)])
    yield "Where a step of the exchange alone goes, S 2, B 1, 2 workers that compute nothing:\n"
    yield table(HEAD, [row for hidden in (100, 512) for row in _exchange(plan, hidden)])


def _fleet(plan: Plan, hidden: int, shards: int, streams: int) -> Iterator[tuple[str, ...]]:
    with tempfile.TemporaryDirectory(dir=plan.scratch) as folder:
        run_dir = Path(folder) / "run"
        task = plan.task(numerics="portable", hidden=hidden, shards=shards, streams=streams)
        flags = ["--workers", "2", *sizes(task), *operation(run_dir)]
        with manychar("train", str(plan.text), *flags) as fleet:
            next(watched(run_dir, [fleet]))
            who = _members(fleet.process.pid)
            what = f"H {hidden}, S {shards}, B {streams}"
            yield from _watch(what, who, run_dir, [fleet], 4 * plan.seconds)


def _exchange(plan: Plan, hidden: int) -> Iterator[tuple[str, ...]]:
    with contextlib.ExitStack() as stack:
        idle = IdleFleet(plan, plan.task(hidden=hidden, shards=2))
        run_dir, processes = idle.started(stack)
        names = ("server", "worker 1", "worker 2")
        who = {name: each.process.pid for name, each in zip(names, processes, strict=True)}
        yield from _watch(f"H {hidden}", who, run_dir, processes, 4 * plan.seconds)


def _members(parent: int) -> dict[str, int]:
    """Return the process number of the server and of each worker that a fleet's parent started."""
    numbers = Counter[str]()
    found = {}
    for child in children(parent):
        words = read(Path(f"/proc/{child}/cmdline")).split("\0")
        for role in set(ROLES) & set(words):
            numbers[role] += 1
            found[role if role == "server" else f"{role} {numbers[role]}"] = child
    return found


def _watch(
    what: str, who: Mapping[str, int], run_dir: Path, processes: Sequence[Process], seconds: float
) -> Iterator[tuple[str, ...]]:
    """Yield what each thread of a run did a step, over some seconds."""
    grown, before, after = growth(run_dir, processes, seconds, read=lambda: thread_times(who))
    for thread in sorted(after):
        spent = [b - a for a, b in zip(before[thread], after[thread], strict=True)]
        on_core, waiting = (ns / grown["step"] / NANOSECONDS_A_MICROSECOND for ns in spent)
        if on_core >= 1:
            yield what, thread, number(on_core), number(waiting)


def thread_times(who: Mapping[str, int]) -> Times:
    """Return (ns on a core, ns ready and waiting) of each thread of these processes."""
    found: Times = {}
    for name, process in who.items():
        for task in sorted(Path(f"/proc/{process}/task").iterdir()):
            kind = "input and output" if "ZMQbg/IO" in read(task / "comm") else "main"
            if "Reaper" in read(task / "comm") or not (times := read(task / "schedstat")):
                continue
            on_core, waiting, _ = map(int, times.split())
            before = found.get(f"{name}, {kind}", (0, 0))
            found[f"{name}, {kind}"] = before[0] + on_core, before[1] + waiting
    return found


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
