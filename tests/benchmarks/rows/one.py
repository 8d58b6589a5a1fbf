"""One process, the full step, beside plain min-char-rnn; and what portable numerics cost."""

from collections.abc import Iterator

from tests.benchmarks.asking import ready
from tests.benchmarks.comparison import compare, comparisons
from tests.benchmarks.plan import Plan

PLAIN, NATIVE = "plain min-char-rnn, float64", "H 100, B 64, float32"
PORTABLE = f"{NATIVE}, portable numerics"
CASES = {"H 100, B 1, float64": 1, "H 100, B 1, float32": 1, NATIVE: 64}


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second."""
    tasks = {
        what: ("single", plan.task(streams=streams, dtype=what.rpartition(" ")[2]))
        for what, streams in CASES.items()
    }
    tasks[PLAIN] = "plain", plan.task().unpinned()
    tasks[PORTABLE] = "single", plan.task(streams=64, numerics="portable")
    with ready(tasks) as sides:
        rows = compare(sides, plan.rounds, [(what, PLAIN) for what in CASES])
        rows += compare(sides, plan.rounds, [(PORTABLE, NATIVE)], percent=True)
    yield "One process, full step, H 100, characters a second:\n"
    yield comparisons(rows)
