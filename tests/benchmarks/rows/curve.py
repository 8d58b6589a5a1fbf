"""The price of keys: the same fleet over plain TCP and over CURVE."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import Measured, interleave
from tests.benchmarks.running import growth, manychar, operation
from tests.benchmarks.tables import Comparison, comparisons

CASES = ((100, 64), (512, 64))


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second."""
    sides: dict[str, Measured] = {}
    for hidden, streams in CASES:
        for keys in (True, False):
            sides[_name(hidden, keys=keys)] = _ByHand(plan, hidden, streams, keys=keys)
    found = interleave(sides, plan.rounds)
    rows = [
        Comparison(
            what=_name(hidden, keys=True),
            ours=found[_name(hidden, keys=True)],
            against="without",
            theirs=found[_name(hidden, keys=False)],
            percent=True,
        )
        for hidden, _ in CASES
    ]
    yield "The price of keys, server and 2 workers, S 2, B 64, characters a second in all:\n"
    yield comparisons(rows)


def _name(hidden: int, *, keys: bool) -> str:
    return f"H {hidden}, {'with keys' if keys else 'without'}"


class _ByHand:
    """A server and two workers that are started one by one, with keys or without."""

    def __init__(self, plan: Plan, hidden: int, streams: int, *, keys: bool) -> None:
        self._plan, self._hidden, self._streams, self._keys = plan, hidden, streams, keys

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
            sizes = ["--hidden", str(self._hidden), "--streams", str(self._streams)]
            server = [
                *("server", str(plan.text), "--bind", endpoint, *locked),
                *("--shards", "2", *sizes, "--numerics", "native", *operation(run_dir)),
            ]
            started = [stack.enter_context(manychar(*server))]
            for number in (1, 2):
                worker = ["worker", endpoint, "--name", f"worker-{number}", *key]
                started.append(stack.enter_context(manychar(*worker)))
            grown, _ = growth(run_dir, started, plan.seconds)
        return grown["characters"] / grown["seconds"]
