"""Time to a validation loss: a fleet at its defaults, beside plain min-char-rnn."""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import Measured, interleave
from tests.benchmarks.tables import Comparison, comparisons
from tests.benchmarks.to_loss import FleetToLoss, validator_of

PLAIN = "plain min-char-rnn, float64"
TIMES_LONGER = 10


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in seconds; every round is another seed."""
    what = f"{plan.target:g} nats a character on the last {plan.held_out:,} characters"
    task = dataclasses.replace(
        plan.task(numerics=""),
        held_out=plan.held_out,
        target=plan.target,
        cap=TIMES_LONGER * plan.cap,
    )
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(Side("plain_to_loss", task))
        validator = stack.enter_context(validator_of(plan))
        plain.until_ready()
        validator.until_ready()
        fleet = FleetToLoss(plan, validator)
        sides: dict[str, Measured] = {what: fleet, PLAIN: plain}
        found = interleave(sides, plan.seeds)
    row = Comparison(
        what=what, ours=found[what], against=PLAIN, theirs=found[PLAIN], less_is_better=True
    )
    yield f"Seconds to a loss, H 100, server and 2 workers at the defaults, {plan.seeds} seeds:\n"
    yield comparisons([row])
    if fleet.starts:
        start = statistics.median(fleet.starts)
        yield f"Counted from the first step; a fleet takes {start:.1f} s to come to it.\n"
