"""When more workers pay: characters a second by workers and size, beside one process."""

from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.comparison import ratios
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import Measured, interleave
from tests.benchmarks.rows.targets import fleet
from tests.benchmarks.tables import number, table

WORKERS, SIZES = (1, 2, 4), (100, 256, 512)


def run(plan: Plan) -> Iterator[str]:
    """Yield the table; the one process computes the same definition."""
    rows = []
    for hidden in SIZES:
        task = plan.default_task(hidden)
        with Side("single", task) as single:
            single.until_ready()
            sides: dict[str, Measured] = {"one process": single}
            sides |= {f"{workers} workers": fleet(plan, workers, task) for workers in WORKERS}
            alone, *fleets = interleave(sides, plan.rounds).values()
        cells = [f"{number(each.median)} ({ratios(each, alone).median:.2f}x)" for each in fleets]
        rows.append((str(hidden), number(alone.median), *cells))
    yield "`train` with its defaults, characters a second (ratio to one process):\n"
    yield table(("H", "one process", *(f"`--workers {n}`" for n in WORKERS)), rows)
