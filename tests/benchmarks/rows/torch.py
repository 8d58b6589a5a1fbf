"""One process, the full step, beside PyTorch eager on one thread."""

from collections.abc import Iterator

from tests.benchmarks.asking import ready
from tests.benchmarks.comparison import Comparison, compare, comparisons
from tests.benchmarks.plan import Plan, require

CASES = ((100, 1), (100, 64), (512, 64))


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second."""
    require("torch")
    rows: list[Comparison] = []
    for hidden, streams in CASES:
        task = plan.task(hidden=hidden, streams=streams)
        what = f"H {hidden}, B {streams}"
        with ready({"": ("eager", task.unpinned()), what: ("single", task)}) as sides:
            torch = f"PyTorch: {sides[''].note}"
            rows += compare({what: sides[what], torch: sides[""]}, plan.rounds, [(what, torch)])
    yield "One process beside PyTorch eager, float32, characters a second:\n"
    yield comparisons(rows)
