"""The speeds to be reached, beside an earlier version, one process, PyTorch DDP and Ray.

A target is reached when the median of the paired ratios is at least it.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.asking import Side, SideError, Together
from tests.benchmarks.idle_fleet import IdleFleet, ServerThread
from tests.benchmarks.plan import MissingError, Plan, require
from tests.benchmarks.program import HERE, Program
from tests.benchmarks.rounds import Measured, interleave, tell
from tests.benchmarks.running import Fleet, sizes
from tests.benchmarks.sides.texts import definition_of
from tests.benchmarks.tables import Comparison, comparisons
from tests.benchmarks.task import Task
from tests.benchmarks.to_loss import FleetToLoss, until_loss

OURS, BEFORE = "this program", "fc2e580"
RAY, BARE = "Ray's parameter server, synchronous", "bare pyzmq: the bytes alone"
ONE, TWO = "`--workers 1`", "`--workers 2`"
SAME, BATCH = "one process, same definition", "one process, one batch of all streams"
PLAIN = "plain min-char-rnn, float64"

TIMES_LONGER = 10

Targets = Sequence[tuple[str, str, float]]  # what, against what, the least ratio


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
    yield comparisons(rows)
    if failed:
        raise SideError("rows are missing above")


def compare(
    sides: Mapping[str, Measured],
    rounds: int,
    targets: Targets,
    what: str,
    *,
    less_is_better: bool = False,
) -> Iterator[Comparison]:
    """Measure the sides that have a target, in turn, and yield the comparisons."""
    there = [target for target in targets if {*target[:2]} <= {*sides}]
    named = {name for target in there for name in target[:2]}
    found = interleave({name: side for name, side in sides.items() if name in named}, rounds)
    for ours, theirs, least in there:
        yield Comparison(
            what=what.format(ours),
            ours=found[ours],
            against=theirs,
            theirs=found[theirs],
            least=least,
            less_is_better=less_is_better,
        )


def fleet(plan: Plan, workers: int, task: Task, program: Program = HERE) -> Fleet:
    """Return `train` with flags that fc2e580 has, too."""
    rate = str(definition_of(task).learning_rate)
    flags = ["--workers", str(workers), "--learning-rate", rate, *sizes(task)]
    return Fleet(plan, *flags, program=program)


def beside_one_process(
    plan: Plan, task: Task, targets: Targets, prefix: str = ""
) -> Iterator[Comparison]:
    """Yield the comparisons of fleets, in characters a second."""
    sides: dict[str, Measured] = {ONE: fleet(plan, 1, task), TWO: fleet(plan, 2, task)}
    if plan.before:
        sides[BEFORE] = fleet(plan, 2, task, plan.before)
    with contextlib.ExitStack() as stack:
        for name, its in ((SAME, task), (BATCH, one_batch(task))):
            side = sides[name] = stack.enter_context(Side("single", its))
            side.until_ready()
        sizes_of = f"H {task.hidden}, S {task.shards}, B {task.streams}"
        what = f"{prefix}{sizes_of}, {{}}: characters a second"
        yield from compare(sides, plan.rounds, targets, what)


def one_batch(task: Task) -> Task:
    """Return a task with the same streams, all in one shard."""
    return dataclasses.replace(task, shards=1, streams=task.shards * task.streams)


def unpinned(task: Task) -> Task:
    """Return the task of a side that is not this program."""
    return dataclasses.replace(task, numerics="")


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
        sides: dict[str, Measured] = {OURS: IdleFleet(plan, task)}
        with contextlib.ExitStack() as stack:
            for name, module in ((RAY, "ray_server"), (BARE, "bare")):
                side = sides[name] = stack.enter_context(Side(module, unpinned(task)))
                side.until_ready()
            what = f"exchange alone, H {hidden}, S 2, native: steps a second"
            yield from compare(sides, plan.rounds, [(OURS, RAY, least), (OURS, BARE, 0.0)], what)


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
        dataclasses.replace(unpinned(task), rank=rank, size=2, meeting=meeting) for rank in range(2)
    ]
    return Together([Side("ddp", each) for each in both])


def _to_loss(plan: Plan) -> Iterator[Comparison]:
    """Every round is another seed."""
    task = plan.default_task()
    longer = dataclasses.replace(plan, cap=TIMES_LONGER * plan.cap)
    tasks = {
        PLAIN: until_loss(longer, unpinned(plan.task()), "plain"),
        BATCH: until_loss(plan, one_batch(task), "batch"),
    }
    with contextlib.ExitStack() as stack:
        validator = stack.enter_context(Side("validation", until_loss(plan, task)))
        validator.until_ready()
        sides: dict[str, Measured] = {TWO: FleetToLoss(plan, task, validator)}
        for name, its in tasks.items():
            side = sides[name] = stack.enter_context(Side("one_to_loss", its))
            side.until_ready()
        what = f"defaults, {{}}: seconds from the first step to {plan.target:g} nats"
        targets = [(TWO, PLAIN, 25.0), (TWO, BATCH, 1.3)]
        yield from compare(sides, plan.seeds, targets, what, less_is_better=True)


def _earlier(plan: Plan) -> Program:
    if plan.before is None:
        raise MissingError(f"{BEFORE}: give --before PYTHON, an environment's that has it")
    return plan.before


PARTS: dict[str, Callable[[Plan], Iterator[Comparison]]] = {
    "fleets": _fleets,
    "exchange": _exchange,
    "ray": _exchange_beside_ray,
    "thread": _server_thread,
    "ddp": _beside_ddp,
    "loss": _to_loss,
}
