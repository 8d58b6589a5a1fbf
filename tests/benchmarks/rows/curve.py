"""The price of keys: the same fleet with CURVE and without, over ipc."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.comparison import Comparison, compare, comparisons
from tests.benchmarks.plan import Plan
from tests.benchmarks.running import growth, manychar, operation, sizes
from tests.benchmarks.task import Task

WITHOUT = "without"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second."""
    rows: list[Comparison] = []
    for hidden in (100, 512):
        task = plan.task(hidden=hidden, shards=2, streams=64)
        what = f"H {hidden}, with keys"
        sides = {name: _ByHand(plan, task, keys=name == what) for name in (what, WITHOUT)}
        rows += compare(sides, plan.rounds, [(what, WITHOUT)], percent=True)
    yield "The price of keys, server and 2 workers, S 2, B 64, characters a second in all:\n"
    yield comparisons(rows)


class _ByHand:
    """A server and two workers that are started one by one, with keys or without."""

    def __init__(self, plan: Plan, task: Task, *, keys: bool) -> None:
        self._plan, self._task, self._keys = plan, task, keys

    def measure(self, turn: int) -> float:
        """Return characters a second, the start left out; `turn` does not matter."""
        plan = self._plan
        with (
            tempfile.TemporaryDirectory(dir=plan.scratch) as folder,
            contextlib.ExitStack() as stack,
        ):
            run_dir, keys = Path(folder) / "run", Path(folder) / "keys"
            locked, key = [], []
            if self._keys:
                with manychar("keys", "create", str(keys)) as making:
                    making.until_it_ends()
                locked, key = ["--keys", str(keys)], ["--key", str(keys / "worker.key")]
            endpoint = f"ipc://{folder}/server"
            server = [
                *("server", str(plan.text), "--bind", endpoint, *locked),
                *sizes(self._task),
                *operation(run_dir),
            ]
            started = [stack.enter_context(manychar(*server))]
            for number in (1, 2):
                worker = ["worker", endpoint, "--name", f"worker-{number}", *key]
                started.append(stack.enter_context(manychar(*worker)))
            grown, *_ = growth(run_dir, started, plan.seconds)
        return grown["characters"] / grown["seconds"]
