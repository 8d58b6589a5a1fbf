"""Study: how long a fleet takes to a validation loss, by the number of streams in a shard."""

import math
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import Measured, interleave
from tests.benchmarks.tables import number, table
from tests.benchmarks.to_loss import FleetToLoss, until_loss

STREAMS = (1, 2, 4, 8, 16, 32, 64, 128)
HEAD = ("--streams", "lowest", "median", "highest", "seeds that got there")


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in seconds; every round is another seed."""
    with Side("validation", until_loss(plan, plan.task())) as validator:
        validator.until_ready()
        sides: dict[str, Measured] = {
            str(streams): FleetToLoss(plan, plan.task(shards=4, streams=streams), validator)
            for streams in STREAMS
        }
        found = interleave(sides, plan.seeds)
    rows = []
    for name, figures in found.items():
        values = figures.values
        there = sum(not math.isinf(value) for value in values)
        shown = [number(value) for value in (min(values), figures.median, max(values))]
        rows.append((name, *shown, f"{there} of {len(values)}"))
    yield (
        f"Seconds to {plan.target:g} nats a character on the last {plan.held_out:,} characters,"
        f" H 100, S 4, server and 2 workers, at most {plan.cap:g} s:\n"
    )
    yield table(HEAD, rows)
