"""The exchange alone, beside Ray's parameter-server pattern: nobody computes a gradient."""

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

TARGETS = {100: 10.0, 512: 6.0}


class Exchange:
    """A real server, and two real workers whose results are preset; started anew each round."""

    def __init__(self, plan: Plan, hidden: int) -> None:
        self._plan, self._hidden = plan, hidden

    def measure(self, turn: int) -> float:
        """Return steps a second, the start left out; `turn` does not matter."""
        plan = self._plan
        with (
            tempfile.TemporaryDirectory(dir=plan.scratch) as folder,
            contextlib.ExitStack() as all_,
        ):
            run_dir = Path(folder) / "run"
            arguments = [
                *("manychar", "server", str(plan.text), "--bind", "tcp://127.0.0.1:*", "--child"),
                *("--hidden", str(self._hidden), "--shards", "2", "--streams", "1"),
                *("--numerics", "native", *operation(run_dir)),
            ]
            server = all_.enter_context(Process(arguments, speaks=True))
            endpoint = json.loads(server.listen())["endpoint"]
            workers = [
                all_.enter_context(Process(["tests.benchmarks.idle_worker", endpoint, f"idle-{i}"]))
                for i in range(2)
            ]
            return steady_rate(run_dir, "step", plan.seconds, [server, *workers])


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in steps a second."""
    require("ray")
    rows = []
    for hidden, target in TARGETS.items():
        task = plan.task(hidden=hidden, numerics="")
        with Side("ray_server", task) as ray:
            size = ray.until_ready()
            what = f"H {hidden}: {size} parameters"
            sides: dict[str, Measured] = {"Ray": ray, what: Exchange(plan, hidden)}
            found = interleave(sides, plan.rounds)
        rows.append(
            Comparison(
                what=what,
                ours=found[what],
                against="Ray's parameter server, synchronous",
                theirs=found["Ray"],
                target=target,
            )
        )
    yield "The exchange alone, server and 2 workers that compute nothing, steps a second:\n"
    yield comparisons(rows)
