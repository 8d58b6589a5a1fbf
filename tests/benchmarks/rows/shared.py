"""Study: tensors through shared memory instead of a socket, by a prototype without failures."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.comparison import compare, comparisons
from tests.benchmarks.plan import Plan
from tests.benchmarks.program import HERE
from tests.benchmarks.rounds import Measured
from tests.benchmarks.running import Fleet, sizes
from tests.benchmarks.shared_memory import shared

SHARED, SOCKET = "shared memory", "a socket"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table of both ways; `--no-compute` is a server and two worker processes."""
    rows = []
    with tempfile.TemporaryDirectory(dir=plan.scratch) as folder:
        ways = {SHARED: shared(Path(folder)), SOCKET: HERE}
        for hidden in (512, 1024):
            task = plan.task(numerics="portable", hidden=hidden, shards=4, streams=16)
            for flag in ("--compute", "--no-compute"):
                flags = ["--workers", "2", flag, *sizes(task)]
                sides: dict[str, Measured] = {
                    name: Fleet(plan, *flags, program=program) for name, program in ways.items()
                }
                what = f"H {hidden}, S 4, B 16, `--workers 2 {flag}`, {{}}: characters a second"
                rows += compare(sides, plan.rounds, [(SHARED, SOCKET)], what)
    yield comparisons(rows)
