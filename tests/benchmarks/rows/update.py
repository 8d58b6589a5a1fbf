"""The server's average, clip and Adagrad, beside the plain NumPy form."""

import contextlib
import dataclasses
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import interleave
from tests.benchmarks.tables import Comparison, comparisons

OURS, PLAIN = "average, clip and Adagrad, S 2", "the plain NumPy form"
KEEPING = "the same, and glibc told to keep freed memory"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in updates a second."""
    task = plan.task(hidden=2048)
    with contextlib.ExitStack() as stack:
        ours = Side("update", dataclasses.replace(task, form="fused"))
        keeping = Side("update", dataclasses.replace(task, form="plain"))
        plain = Side("update", dataclasses.replace(task, form="plain", numerics=""))
        sides = {OURS: ours, PLAIN: plain, KEEPING: keeping}
        for side in sides.values():
            stack.enter_context(side)
        sizes = [side.until_ready() for side in sides.values()]
        found = interleave(sides, plan.rounds)
    rows = [
        Comparison(what=OURS, ours=found[OURS], against=other, theirs=found[other])
        for other in (PLAIN, KEEPING)
    ]
    yield f"The server's update of {sizes[0]} parameters (H 2048), updates a second:\n"
    yield comparisons(rows)
