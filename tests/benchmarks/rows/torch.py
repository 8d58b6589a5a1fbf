"""One process, the full step, beside PyTorch eager on one thread."""

import contextlib
import dataclasses
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan, require
from tests.benchmarks.rounds import interleave
from tests.benchmarks.tables import Comparison, comparisons

CASES = ((100, 1), (100, 64), (512, 64))


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second."""
    require("torch")
    yield "One process beside PyTorch eager, float32, characters a second:\n"
    with contextlib.ExitStack() as stack:
        sides, forms = {}, {}
        for hidden, streams in CASES:
            what = f"H {hidden}, B {streams}"
            task = plan.task(hidden=hidden, streams=streams)
            torch = Side("eager", dataclasses.replace(task, numerics=""))
            sides[f"{what}, PyTorch"] = stack.enter_context(torch)
            forms[what] = torch.until_ready()  # it tries its forms while nothing else runs
            sides[what] = stack.enter_context(Side("single", task))
            sides[what].until_ready()
        found = interleave(sides, plan.rounds)
    rows = [
        Comparison(
            what=what,
            ours=found[what],
            against=f"PyTorch: {form}",
            theirs=found[f"{what}, PyTorch"],
        )
        for what, form in forms.items()
    ]
    yield comparisons(rows)
