"""The exchange alone, beside Ray's parameter-server pattern: nobody computes a gradient.

And beside pyzmq itself with the same bytes and no protocol: what there is to reach.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan, require
from tests.benchmarks.rounds import Measured, interleave
from tests.benchmarks.running import Process, operation, steady_rate
from tests.benchmarks.tables import Comparison, comparisons

RAY, BARE = "Ray's parameter server, synchronous", "bare pyzmq: the bytes alone"
SIZES = (100, 512)


class Exchange:
    """A real server, and two real workers whose results are preset; started anew each round."""

    def __init__(self, plan: Plan, hidden: int) -> None:
        self._plan, self._hidden = plan, hidden

    def measure(self, turn: int) -> float:
        """Return steps a second, the start left out; `turn` does not matter."""
        with contextlib.ExitStack() as stack:
            run_dir, *processes = started(self._plan, self._hidden, stack)
            return steady_rate(run_dir, "step", self._plan.seconds, processes)


def started(
    plan: Plan, hidden: int, stack: contextlib.ExitStack
) -> tuple[Path, Process, Process, Process]:
    """Return a run directory, its server and the two workers; they end with the stack."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=plan.scratch))
    run_dir = Path(folder) / "run"
    arguments = [
        *("manychar", "server", str(plan.text), "--bind", "tcp://127.0.0.1:*", "--child"),
        *("--hidden", str(hidden), "--shards", "2", "--streams", "1"),
        *("--numerics", "native", *operation(run_dir)),
    ]
    server = stack.enter_context(Process(arguments, speaks=True))
    endpoint = json.loads(server.listen())["endpoint"]
    one, two = (
        stack.enter_context(Process(["tests.benchmarks.idle_worker", endpoint, f"idle-{i}"]))
        for i in range(2)
    )
    return run_dir, server, one, two


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in steps a second."""
    require("ray")
    rows = []
    for hidden in SIZES:
        task = plan.task(hidden=hidden, numerics="")
        with Side("ray_server", task) as ray, Side("bare", task) as bare:
            size = ray.until_ready()
            bare.until_ready()
            what = f"H {hidden}: {size} parameters"
            sides: dict[str, Measured] = {RAY: ray, BARE: bare, what: Exchange(plan, hidden)}
            found = interleave(sides, plan.rounds)
        ours = found[what]
        rows += [
            Comparison(what=what, ours=ours, against=RAY, theirs=found[RAY]),
            Comparison(what=what, ours=ours, against=BARE, theirs=found[BARE], percent=True),
        ]
    yield "The exchange alone, server and 2 workers that compute nothing, steps a second:\n"
    yield comparisons(rows)
