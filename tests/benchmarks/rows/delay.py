"""Study: what --delay does to learning, as held-out loss after so many characters."""

import dataclasses
import json
from collections.abc import Iterator

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import Figures, tell
from tests.benchmarks.tables import spread, table

DELAYS = (0, 1, 2)
MARKS = (1_000_000, 3_000_000, 10_000_000)


def run(plan: Plan, marks: tuple[int, ...] = MARKS) -> Iterator[str]:
    """Yield the table, in nats a character."""
    task = dataclasses.replace(plan.task(), held_out=plan.held_out, marks=marks)
    rows = []
    with Side("delayed", task) as side:
        side.until_ready()
        for delay in DELAYS:
            losses = []
            for seed in range(plan.seeds):
                losses.append(side.ask(json.dumps({"delay": delay, "seed": seed})))
                tell(f"--delay {delay}, seed {seed}: {losses[-1]}")
            at_marks = [Figures(tuple(values)) for values in zip(*losses, strict=True)]
            rows.append((str(delay), *map(spread, at_marks)))
    yield (
        f"Nats a character on the last {plan.held_out:,} characters, H 100, otherwise the defaults,"
        f" median (lowest … highest) of {plan.seeds} seeds:\n"
    )
    yield table(("--delay", *(f"after {mark:,} characters" for mark in marks)), rows)
