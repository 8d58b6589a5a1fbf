"""Study: where a step of one process goes, part by part."""

import contextlib
import dataclasses
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.tables import number, table

CASES = (
    (100, 1, "float64"),
    (100, 1, "float32"),
    (100, 16, "float32"),
    (100, 64, "float32"),
    (512, 128, "float32"),
)


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in µs, each part the least of many times."""
    found = []
    for hidden, streams, dtype in CASES:
        task = dataclasses.replace(plan.task(hidden=hidden, streams=streams), dtype=dtype)
        with contextlib.closing(Side("parts", task)) as side:
            side.until_ready()
            found.append(side.ask())
    head = ["µs", *(f"H {hidden}, B {streams}, {dtype}" for hidden, streams, dtype in CASES)]
    yield "One process, the parts of a step, each timed alone:\n"
    yield table(head, [[part, *(number(case[part]) for case in found)] for part in found[0]])
