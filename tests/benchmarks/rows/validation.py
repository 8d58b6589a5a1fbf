"""The price of validation: the same fleet with a validation text, and without."""

import dataclasses
from collections.abc import Iterator

from tests.benchmarks.comparison import compare, comparisons
from tests.benchmarks.plan import Plan
from tests.benchmarks.running import Fleet

CHECKPOINT_EVERY, INTERVALS = 1000, 4
VALIDATED = f"--validation 0.05, a checkpoint every {CHECKPOINT_EVERY:,} steps"
NOT = "the same without --validation"


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in characters a second; each measurement has several checkpoints in it."""
    longer = dataclasses.replace(plan, seconds=INTERVALS * plan.seconds)
    sides = {
        what: Fleet(longer, "--workers", "2", *more, checkpoint_every=CHECKPOINT_EVERY)
        for what, more in ((VALIDATED, ("--validation", "0.05")), (NOT, ()))
    }
    yield "The price of validation, server and 2 workers, defaults, characters a second in all:\n"
    yield comparisons(compare(sides, plan.rounds, [(VALIDATED, NOT)], percent=True))
