"""The server's average, clip and Adagrad, beside the plain NumPy form."""

import contextlib
import dataclasses
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import interleave
from tests.benchmarks.tables import Comparison, comparisons

OURS, PLAIN = "average, clip and Adagrad, S 2", "the plain NumPy form"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in updates a second."""
    task = plan.task(hidden=2048)
    with contextlib.ExitStack() as stack:
        ours = Side("update", dataclasses.replace(task, form="fused"))
        plain = Side("update", dataclasses.replace(task, form="plain"))
        sides = {OURS: stack.enter_context(ours), PLAIN: stack.enter_context(plain)}
        sizes = [side.until_ready() for side in sides.values()]
        found = interleave(sides, plan.rounds)
    row = Comparison(what=OURS, ours=found[OURS], against=PLAIN, theirs=found[PLAIN], target=3.0)
    yield f"The server's update of {sizes[0]} parameters (H 2048), updates a second:\n"
    yield comparisons([row])
