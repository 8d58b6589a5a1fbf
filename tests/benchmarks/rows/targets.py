"""The speeds to be reached, beside an earlier version, one process, PyTorch DDP and Ray.

A target is reached when the median of the paired ratios is at least it.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.benchmarks.asking import Side, SideError, Together, ready
from tests.benchmarks.comparison import Comparison, Pair, compare, comparisons
from tests.benchmarks.idle_fleet import IdleFleet, ServerThread
from tests.benchmarks.plan import MissingError, Plan, require
from tests.benchmarks.program import HERE, Program
from tests.benchmarks.rounds import Measured, tell
from tests.benchmarks.running import Fleet, sizes
from tests.benchmarks.task import Task
from tests.benchmarks.to_loss import FleetToLoss, until_loss

OURS, BEFORE = "this program", "fc2e580"
RAY, BARE = "Ray's parameter server, synchronous", "bare pyzmq: the bytes alone"
ONE, TWO = "`--workers 1`", "`--workers 2`"
SAME, BATCH = "one process, same definition", "one process, one batch of all streams"
PLAIN = "plain min-char-rnn, float64"
APART = "two processes apart, in all"

TIMES_LONGER = 10


def run(plan: Plan) -> Iterator[str]:
    """Yield a line for what had to be left out, then the table."""
    rows, failed = [], False
    for name, case in PARTS.items():
        if plan.part not in ("", name):
            continue
        try:
            for row in case(plan):
                tell(" | ".join(row.cells()))
                rows.append(row)
        except MissingError as error:
            yield f"{name}: left out: {error}\n"
        except SideError as error:
            failed = True
            yield f"{name}: failed: {error}\n"
    if rows:
        yield comparisons(rows)
    if failed:
        raise SideError("rows are missing above")


def fleet(plan: Plan, workers: int, task: Task, program: Program = HERE) -> Fleet:
    """Return `train`; fc2e580 has no warm-up, and a rate at which no size diverges without one."""
    flags = ["--workers", str(workers), *sizes(task)]
    if program != HERE:
        flags += ["--learning-rate", "0.01"]
    return Fleet(plan, *flags, program=program)


def beside_one_process(
    plan: Plan, task: Task, targets: Sequence[Pair], prefix: str = ""
) -> Iterator[Comparison]:
    """Yield the comparisons of fleets, in characters a second."""
    fleets: dict[str, Measured] = {ONE: fleet(plan, 1, task), TWO: fleet(plan, 2, task)}
    if plan.before:
        fleets[BEFORE] = fleet(plan, 2, task, plan.before)
    what = f"{prefix}H {task.hidden}, S {task.shards}, B {task.streams}, {{}}: characters a second"
    with ready({SAME: ("single", task), BATCH: ("single", task.in_one_batch())}) as sides:
        yield from compare({**sides, **fleets}, plan.rounds, targets, what)


def _fleets(plan: Plan) -> Iterator[Comparison]:
    def sized(hidden: int, shards: int, streams: int) -> Task:
        return plan.task(numerics="portable", hidden=hidden, shards=shards, streams=streams)

    of_100 = (TWO, BEFORE, 1.8), (TWO, SAME, 1.25), (TWO, BATCH, 1.1), (ONE, SAME, 0.95)
    yield from beside_one_process(plan, sized(100, 4, 16), of_100)
    of_512 = (TWO, BEFORE, 1.4), (TWO, SAME, 1.7), (TWO, BATCH, 1.5)
    yield from beside_one_process(plan, sized(512, 4, 16), of_512)
    yield from beside_one_process(plan, sized(100, 2, 64), [(TWO, SAME, 1.5)])
    for hidden, least in ((100, 1.4), (256, 1.6), (512, 1.6)):
        task = plan.default_task(hidden)
        yield from beside_one_process(plan, task, [(TWO, BATCH, least)], "defaults, ")
    if plan.before is None:
        _earlier(plan)


def _exchange(plan: Plan) -> Iterator[Comparison]:
    """Two workers that compute nothing."""
    before = _earlier(plan)
    for shards, least in ((2, 2.2), (8, 3.7), (32, 9.0)):
        task = plan.task(numerics="portable", shards=shards)
        sides = {OURS: IdleFleet(plan, task), BEFORE: IdleFleet(plan, task, program=before)}
        what = f"exchange alone, H 100, S {shards}, 2 idle workers: steps a second"
        yield from compare(sides, plan.rounds, [(OURS, BEFORE, least)], what)


def _exchange_beside_ray(plan: Plan) -> Iterator[Comparison]:
    """The same, with native numerics; and pyzmq itself with the same bytes and no protocol."""
    require("ray")
    for hidden, least in ((100, 5.0), (512, 4.0)):
        task = plan.task(hidden=hidden, shards=2)
        others = {RAY: ("ray_server", task.unpinned()), BARE: ("bare", task.unpinned())}
        with ready(others) as sides:
            what = f"exchange alone, H {hidden}, S 2, native: steps a second"
            pairs: list[Pair] = [(OURS, RAY, least), (OURS, BARE)]
            yield from compare({OURS: IdleFleet(plan, task), **sides}, plan.rounds, pairs, what)


def _server_thread(plan: Plan) -> Iterator[Comparison]:
    """The ratio to be reached follows from two formulas in microseconds."""
    if not Path("/proc/self/schedstat").exists():
        raise MissingError("this system has no /proc/PID/schedstat")
    before = _earlier(plan)
    for workers in (1, 2, 4):
        task = plan.task(numerics="portable", shards=workers, streams=16)
        sides = {
            OURS: ServerThread(plan, task, workers),
            BEFORE: ServerThread(plan, task, workers, before),
        }
        least = (294 + 171 * workers) / (200 + 85 * workers)
        what = f"server's main thread, H 100, S {workers}, {workers} idle workers: µs a step"
        targets = [(OURS, BEFORE, least)]
        yield from compare(sides, plan.rounds, targets, what, less_is_better=True)


def _beside_ddp(plan: Plan) -> Iterator[Comparison]:
    require("torch")
    for hidden, least in ((100, 1.9), (512, 1.1)):
        task = plan.task(hidden=hidden, shards=2, streams=64)
        with _ddp(task, plan.scratch) as ddp:
            against = f"PyTorch DDP, gloo, 2 processes: {ddp.until_ready()}"
            sides: dict[str, Measured] = {TWO: fleet(plan, 2, task), against: ddp}
            what = f"H {hidden}, S 2, B 64, {{}}, native: characters a second"
            yield from compare(sides, plan.rounds, [(TWO, against, least)], what)


def _ddp(task: Task, scratch: Path) -> Together:
    """Start the two processes; they find one another at a file that is not there yet."""
    meeting = str(Path(tempfile.mkdtemp(dir=scratch)) / "meeting")
    both = [
        dataclasses.replace(task.unpinned(), rank=rank, size=2, meeting=meeting)
        for rank in range(2)
    ]
    return Together([Side("ddp", each) for each in both])


def _to_loss(plan: Plan) -> Iterator[Comparison]:
    """Every round is another seed."""
    task = plan.default_task()
    longer = dataclasses.replace(plan, cap=TIMES_LONGER * plan.cap)
    plain = until_loss(longer, plan.task().unpinned(), "plain")
    batch = until_loss(plan, task.in_one_batch(), "batch")
    others = {PLAIN: ("one_to_loss", plain), BATCH: ("one_to_loss", batch)}
    with ready(others) as sides, Side("validation", until_loss(plan, task)) as validator:
        validator.until_ready()
        fleets = {TWO: FleetToLoss(plan, task, validator)}
        what = f"defaults, {{}}: seconds from the first step to {plan.target:g} nats"
        targets = [(TWO, PLAIN, 25.0), (TWO, BATCH, 1.3)]
        yield from compare({**fleets, **sides}, plan.seeds, targets, what, less_is_better=True)


def _earlier(plan: Plan) -> Program:
    if plan.before is None:
        raise MissingError(f"{BEFORE}: give --before PYTHON, an environment's that has it")
    return plan.before


def _bounds(plan: Plan) -> Iterator[Comparison]:
    """Two processes that never exchange anything; the defaults in two shards, and doubled."""
    for hidden in (100, 512):
        task = plan.task(numerics="portable", hidden=hidden, shards=4, streams=16)
        with (
            Together([Side("single", task) for _ in range(2)]) as apart,
            ready({SAME: ("single", task)}) as sides,
        ):
            apart.until_ready()
            what = f"H {hidden}, S 4, B 16, {{}}: characters a second"
            yield from compare({APART: apart, **sides}, plan.rounds, [(APART, SAME)], what)
    for hidden in (100, 256, 512):
        usual = plan.default_task(hidden)
        halved = dataclasses.replace(usual, shards=2, streams=usual.shards * usual.streams // 2)
        doubled = dataclasses.replace(usual, streams=2 * usual.streams)
        for task, name in ((halved, "two shards, "), (doubled, "twice the streams, ")):
            yield from beside_one_process(plan, task, [(TWO, BATCH)], name)


PARTS: dict[str, Callable[[Plan], Iterator[Comparison]]] = {
    "fleets": _fleets,
    "exchange": _exchange,
    "ray": _exchange_beside_ray,
    "thread": _server_thread,
    "ddp": _beside_ddp,
    "loss": _to_loss,
    "bounds": _bounds,
}
