"""One process at a large size, beside the peak of the machine's matrix product."""

import contextlib
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import interleave
from tests.benchmarks.tables import Comparison, comparisons

STEP, PRODUCTS, PEAK = "full step, H 512, B 128, float32", "its products alone", "sgemm's peak"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in GFLOP/s of the recurrent and output products."""
    task = plan.task(hidden=512, streams=128)
    with contextlib.ExitStack() as stack:
        names = {STEP: "single", PRODUCTS: "products", PEAK: "sgemm"}
        sides = {what: stack.enter_context(Side(name, task)) for what, name in names.items()}
        notes = {what: side.until_ready() for what, side in sides.items()}
        found = interleave(sides, plan.rounds)
    flops = int(notes[PRODUCTS])
    found[STEP] = found[STEP].times(1e-9 * flops)
    rows = [
        Comparison(what=what, ours=found[what], against=PEAK, theirs=found[PEAK], percent=True)
        for what in (STEP, PRODUCTS)
    ]
    yield f"One process, GFLOP/s ({flops:,} a character: 6 (H² + H V)):\n"
    yield comparisons(rows)
