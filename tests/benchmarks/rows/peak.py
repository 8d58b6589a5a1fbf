"""One process at a large size, beside the peak of the machine's matrix product."""

from collections.abc import Iterator

from tests.benchmarks.asking import ready
from tests.benchmarks.comparison import compare, comparisons
from tests.benchmarks.plan import Plan

STEP, PRODUCTS, PEAK = "full step, H 512, B 128, float32", "its products alone", "sgemm's peak"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in GFLOP/s of the recurrent and output products."""
    task = plan.task(hidden=512, streams=128)
    names = {PRODUCTS: "products", PEAK: "sgemm", STEP: "single"}
    with ready({what: (name, task) for what, name in names.items()}) as sides:
        flops = int(sides[PRODUCTS].note)
        sides[STEP].unit = 1e-9 * flops
        rows = compare(sides, plan.rounds, [(STEP, PEAK), (PRODUCTS, PEAK)], percent=True)
    yield f"One process, GFLOP/s ({flops:,} a character: 6 (H² + H V)):\n"
    yield comparisons(rows)
