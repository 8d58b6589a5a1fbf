"""One process, the full step, beside plain min-char-rnn; and what portable numerics cost."""

import contextlib
import dataclasses
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import interleave
from tests.benchmarks.tables import Comparison, comparisons

CASES = ((1, "float64"), (1, "float32"), (64, "float32"))
PLAIN, PORTABLE = "plain min-char-rnn, float64", "portable numerics"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second."""
    with contextlib.ExitStack() as stack:
        plain = Side("plain", plan.task(numerics=""))
        sides = {PLAIN: stack.enter_context(plain)}
        for streams, dtype in CASES:
            task = dataclasses.replace(plan.task(streams=streams), dtype=dtype)
            sides[what(streams, dtype)] = stack.enter_context(Side("single", task))
        portable = Side("single", plan.task(numerics="portable", streams=64))
        sides[PORTABLE] = stack.enter_context(portable)
        for side in sides.values():
            side.until_ready()
        found = interleave(sides, plan.rounds)
    rows = [
        Comparison(
            what=what(streams, dtype),
            ours=found[what(streams, dtype)],
            against=PLAIN,
            theirs=found[PLAIN],
        )
        for streams, dtype in CASES
    ]
    native = what(64, "float32")
    rows.append(
        Comparison(
            what=f"{native}, {PORTABLE}",
            ours=found[PORTABLE],
            against="native numerics",
            theirs=found[native],
            percent=True,
        )
    )
    yield "One process, full step, H 100, characters a second:\n"
    yield comparisons(rows)


def what(streams: int, dtype: str) -> str:
    """Return a case's name."""
    return f"H 100, B {streams}, {dtype}"
