"""The server's average, clip and Adagrad, beside the plain NumPy form."""

import dataclasses
from collections.abc import Iterator

from tests.benchmarks.asking import ready
from tests.benchmarks.comparison import compare, comparisons
from tests.benchmarks.plan import Plan

OURS, PLAIN = "average, clip and Adagrad, S 2", "the plain NumPy form"
KEEPING = "the same, and glibc told to keep freed memory"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in updates a second."""
    plain = plan.task(hidden=2048, form="plain")
    forms = {
        OURS: dataclasses.replace(plain, form="fused"),
        PLAIN: dataclasses.replace(plain, numerics=""),
        KEEPING: plain,
    }
    with ready({name: ("update", task) for name, task in forms.items()}) as sides:
        rows = compare(sides, plan.rounds, [(OURS, PLAIN), (OURS, KEEPING)])
    yield f"The server's update of {sides[OURS].note} parameters (H 2048), updates a second:\n"
    yield comparisons(rows)
