"""A server and two workers, beside PyTorch DDP and beside two single processes of this program."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.asking import Side, Together
from tests.benchmarks.plan import MissingError, Plan, require
from tests.benchmarks.rounds import Measured, interleave
from tests.benchmarks.running import Fleets
from tests.benchmarks.tables import Comparison, comparisons
from tests.benchmarks.task import Task

STREAMS = 64
DDP, TWO = "PyTorch DDP, gloo, 2 processes", "2 single processes, added up"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second of all together."""
    try:
        require("torch")
        with_torch = True
    except MissingError as error:
        with_torch = False
        yield f"PyTorch DDP is left out: {error}\n"
    rows = []
    for hidden in (100, 512):
        rows += _compare(plan, hidden, with_torch=with_torch)
    yield "Server and 2 workers, S 2, B 64, float32, characters a second in all:\n"
    yield comparisons(rows)


def _compare(plan: Plan, hidden: int, *, with_torch: bool) -> list[Comparison]:
    task = plan.task(hidden=hidden, streams=STREAMS)
    sides: dict[str, Measured] = {}
    against = TWO
    with contextlib.ExitStack() as stack:
        if with_torch:
            ddp = stack.enter_context(_ddp(task, plan.scratch))
            against = f"{DDP}: {ddp.until_ready()}"
            sides[DDP] = ddp
        two = stack.enter_context(Together([Side("single", task) for _ in range(2)]))
        two.until_ready()
        sides[TWO] = two
        what = f"H {hidden}"
        sides[what] = Fleets(plan.text, plan.scratch, plan.seconds, _flags(hidden))
        found = interleave(sides, plan.rounds)
    ours = found[what]
    beside_two = Comparison(what=what, ours=ours, against=TWO, theirs=found[TWO], percent=True)
    if not with_torch:
        return [beside_two]
    beside_ddp = Comparison(what=what, ours=ours, against=against, theirs=found[DDP])
    return [beside_ddp, beside_two]


def _flags(hidden: int) -> list[str]:
    return [
        *("--workers", "2", "--shards", "2", "--streams", str(STREAMS)),
        *("--hidden", str(hidden), "--numerics", "native"),
    ]


def _ddp(task: Task, scratch: Path) -> Together:
    """Start the two processes; they find one another at a file that is not there yet."""
    meeting = str(Path(tempfile.mkdtemp(dir=scratch)) / "meeting")
    both = [
        Side("ddp", dataclasses.replace(task, numerics="", rank=rank, size=2, meeting=meeting))
        for rank in range(2)
    ]
    return Together(both)
