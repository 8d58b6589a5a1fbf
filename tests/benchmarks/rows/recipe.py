"""Study: learning rate, warm-up and streams by size, by halving; then the defaults that it gave.

Every run is one process with portable numerics, so that a figure is the same on any x86-64 CPU.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manychar.numerics.run_definition import Definition
from manychar.protocol.run_operation import Operation
from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import tell
from tests.benchmarks.sides.held_out import crossing
from tests.benchmarks.tables import table

COARSE, LEARNS_WITHIN = 600_000, 1_000_000
LEARNS = 2.6
DEFAULTS_OF_0_1_0 = {"learning_rate": 0.1, "warmup": 0, "streams": 64}
GRID = {
    64: (0.07, 0.1, 0.14, 0.2),
    256: (0.025, 0.035, 0.05, 0.07, 0.1),
    1024: (0.0125, 0.0175, 0.025),
}
WARMUPS = (0, 50, 100, 200, 400)
STREAMS, BY_STREAMS, MARKS_BY_STREAMS = (
    (16, 32, 64, 128, 256, 512),
    (100, 256),
    (1_000_000, 2_500_000),
)
SIZES = (64, 100, 256, 512, 1024)
RIVALS = {
    100: [(0.1, 50), (0.1, 200)],
    256: [(0.0391, 100)],
    512: [(0.0195, 100)],
    1024: [(0.0098, 100)],
}
SEEDS_TO_THE_END = {64: 3, 100: 3, 256: 2, 512: 2}
ON_THE_WAY = (1_000_000, 2_500_000, 5_000_000, 8_000_000)
SEEDS_TO_TARGET = 9
LOOKS = range(25_000, 10_000_001, 25_000)
Values = Mapping[str, Any]


class Trainings:
    """Trainings that were made: `plan.results` keeps them, so that a study can go on."""

    def __init__(self, plan: Plan, side: Side) -> None:
        self._side, self._file = side, plan.results
        lines = self._file.read_text().splitlines() if self._file and self._file.exists() else []
        self._known: dict[str, list[float]] = dict(json.loads(line) for line in lines)

    def losses(self, values: Values, marks: Sequence[int], **more: float) -> list[float]:
        """Return the losses of one training after so many characters."""
        asked = json.dumps({**values, **more, "marks": [*marks]}, sort_keys=True)
        if asked not in self._known:
            self._known[asked] = self._side.ask(asked)
            tell(f"{asked}: {self._known[asked]}")
            if self._file:
                with self._file.open("a") as file:
                    print(json.dumps([asked, self._known[asked]]), file=file)
        return self._known[asked]


def run(plan: Plan) -> Iterator[str]:
    """Yield the tables: grid, streams, seeds, the end of a default run, the way to the target."""
    task = dataclasses.replace(plan.task(numerics="portable"), held_out=plan.held_out)
    with Side("recipe", task) as side:
        side.until_ready()
        trainings = Trainings(plan, side)
        yield f"Nats a character on the last {plan.held_out:,} characters, by rate and warm-up:\n"
        yield from _grid(trainings)
        yield from _by_streams(trainings)
        yield from _seeds(trainings, plan.seeds)
        yield from _ends(trainings)
        yield from _to_target(trainings, plan)


def _defaults(hidden: int) -> dict[str, Any]:
    """Return the values that the default recipe has for a size."""
    usual = Definition(corpus_sha256="0" * 64, hidden=hidden)
    return {
        "hidden": hidden,
        "streams": usual.total_streams,
        "learning_rate": usual.learning_rate,
        "warmup": usual.warmup,
        "seed": 0,
    }


def _grid(trainings: Trainings) -> Iterator[str]:
    """The coarse grid, with one seed."""
    rows = []
    for hidden, rates in GRID.items():
        for rate in rates:
            values = {**_defaults(hidden), "learning_rate": rate}
            found = (trainings.losses({**values, "warmup": w}, [COARSE])[0] for w in WARMUPS)
            rows.append((f"{hidden:,}", f"{rate:g}", *map(_shown, found)))
    yield table(("H", "rate", *(f"{warmup} steps" for warmup in WARMUPS)), rows)


def _by_streams(trainings: Trainings) -> Iterator[str]:
    """The default rate and warm-up with other numbers of streams."""
    rows = []
    for streams in STREAMS:
        cells: list[str] = []
        for hidden in BY_STREAMS:
            values = {**_defaults(hidden), "streams": streams}
            cells += map(_shown, trainings.losses(values, MARKS_BY_STREAMS))
        rows.append((str(streams), *cells))
    head = (f"H {hidden}, {mark:,}" for hidden in BY_STREAMS for mark in MARKS_BY_STREAMS)
    yield "The same by streams in all, after so many characters:\n"
    yield table(("total streams", *head), rows)


def _seeds(trainings: Trainings, seeds: int) -> Iterator[str]:
    """The default recipe, and others that came near it, with several seeds."""
    rows = []
    for hidden in SIZES:
        usual = _defaults(hidden)
        for rate, warmup in [(usual["learning_rate"], usual["warmup"]), *RIVALS.get(hidden, ())]:
            values = {**usual, "learning_rate": rate, "warmup": warmup}
            each = [
                trainings.losses({**values, "seed": seed}, [COARSE, LEARNS_WITHIN])[-1]
                for seed in range(1, seeds + 1)
            ]
            learned = f"{sum(loss < LEARNS for loss in each)} of {seeds}"
            figures = map(_shown, (min(each), statistics.median(each), max(each)))
            rows.append((f"{hidden:,}", f"{rate:.4g}", str(warmup), *figures, learned))
    yield f"Several seeds, after {LEARNS_WITHIN:,} characters:\n"
    yield table(("H", "rate", "warm-up", "lowest", "median", "highest", f"below {LEARNS}"), rows)


def _ends(trainings: Trainings) -> Iterator[str]:
    """Default runs to the default number of steps."""
    rows = []
    for hidden, seeds in SEEDS_TO_THE_END.items():
        values = _defaults(hidden)
        end = Operation(workers=1).steps * values["streams"] * 25
        for seed in range(1, seeds + 1):
            found = trainings.losses({**values, "seed": seed}, [*ON_THE_WAY, end])
            rows.append((f"{hidden:,}", str(seed), *map(_shown, found)))
    yield "Default runs, after so many characters:\n"
    yield table(("H", "seed", *(f"{mark:,}" for mark in ON_THE_WAY), "default steps"), rows)


def _to_target(trainings: Trainings, plan: Plan) -> Iterator[str]:
    """Characters to the target at the defaults, and with those of version 0.1.0."""
    rows, medians = [], []
    for name, recipe in {"the defaults": {}, "version 0.1.0": DEFAULTS_OF_0_1_0}.items():
        values = {**_defaults(100), **recipe}
        each = [
            _characters_to(plan.target, trainings, {**values, "seed": seed})
            for seed in range(1, SEEDS_TO_TARGET + 1)
        ]
        medians.append(statistics.median(each))
        rows.append((name, *(f"{value:,.0f}" for value in (min(each), medians[-1], max(each)))))
    yield f"H 100, {SEEDS_TO_TARGET} seeds: characters to {plan.target:g} nats:\n"
    yield table(("recipe", "lowest", "median", "highest"), rows)
    yield f"Ratio of the medians: {medians[1] / medians[0]:.2f}"


def _characters_to(target: float, trainings: Trainings, values: Values) -> float:
    losses = trainings.losses(values, LOOKS, target=target)
    points = [(0.0, math.inf), *zip(map(float, LOOKS), losses, strict=False)]
    if points[-1][1] > target:
        return math.inf
    return crossing(points[-2], points[-1], target)


def _shown(loss: float) -> str:
    return "diverged" if math.isinf(loss) else f"{loss:.2f}"
