"""The price of validation: the same fleet with a validation text, and without."""

import dataclasses
from collections.abc import Iterator

from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import interleave
from tests.benchmarks.running import Fleet
from tests.benchmarks.tables import Comparison, comparisons

VALIDATED, NOT = (
    "--validation 0.05, a checkpoint every 1,000 steps",
    "the same without --validation",
)
CHECKPOINT_EVERY = 1000
INTERVALS = 4


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second; each measurement has several checkpoints in it."""
    longer = dataclasses.replace(plan, seconds=INTERVALS * plan.seconds)
    sides = {
        what: Fleet(longer, "--workers", "2", *more, checkpoint_every=CHECKPOINT_EVERY)
        for what, more in ((VALIDATED, ("--validation", "0.05")), (NOT, ()))
    }
    found = interleave(sides, plan.rounds)
    row = Comparison(
        what=VALIDATED, ours=found[VALIDATED], against=NOT, theirs=found[NOT], percent=True
    )
    yield "The price of validation, server and 2 workers, defaults, characters a second in all:\n"
    yield comparisons([row])
