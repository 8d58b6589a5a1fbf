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
from manychar.protocol.run_operation import choose_steps
from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import tell
from tests.benchmarks.sides.crossing import crossing
from tests.benchmarks.tables import table

COARSE, LEARNS_WITHIN, LEARNS = 600_000, 1_000_000, 2.6
DEFAULTS_OF_0_1_0 = {"learning_rate": 0.1, "warmup": 0, "streams": 64}
GRID = {  # by hidden units: total streams, rates, warm-ups
    64: (64, (0.07, 0.1, 0.14, 0.2), (0, 50, 100, 200)),
    256: (64, (0.025, 0.035, 0.05, 0.07, 0.1), (50, 100, 200, 400)),
    1024: (32, (0.0125, 0.025), (100, 300)),
}
STREAMS = (16, 32, 64, 128, 256, 512)
SIZES_BY_STREAMS = {100: STREAMS, 256: STREAMS, 512: (32, 64, 128)}
# Other values than the default ones, and the number of seeds; 10 / H is a rate that falls with H.
OTHERS: dict[int, list[tuple[dict[str, float], int]]] = {
    64: [],
    100: [
        ({"warmup": 50}, 2),
        ({"warmup": 200}, 5),
        ({"streams": 128}, 5),
        ({"streams": 512, "learning_rate": 0.03, "warmup": 0}, 2),
    ],
    256: [({"streams": 64}, 5), ({"streams": 64, "learning_rate": 10 / 256, "warmup": 100}, 5)],
    512: [({"streams": 64}, 2), ({"streams": 64, "learning_rate": 10 / 512, "warmup": 100}, 5)],
    1024: [
        ({"learning_rate": 0.1 * (100 / 1024) ** 0.75}, 5),
        ({"streams": 64, "learning_rate": 10 / 1024, "warmup": 100}, 3),
    ],
}
TO_THE_END: list[tuple[int, dict[str, float], int]] = [  # hidden units, other values, seeds
    (64, {}, 1),
    (100, {}, 1),
    (100, {"streams": 128}, 1),
    (250, {}, 5),
    (256, {}, 5),
    (512, {}, 5),
]
ON_THE_WAY = (5_000, 7_500, 10_000)
SEEDS = 5
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
            tell(f"{dict(values)}: {self._known[asked][-1]:.4f}")
            if self._file:
                with self._file.open("a") as file:
                    print(json.dumps([asked, self._known[asked]]), file=file)
        return self._known[asked]


def run(plan: Plan) -> Iterator[str]:
    """Yield the tables: grid, streams, seeds, the end of a default run, the way to the target."""
    task = dataclasses.replace(
        plan.task(numerics="portable"), validation_characters=plan.validation_characters
    )
    with Side("recipe", task) as side:
        side.until_ready()
        trainings = Trainings(plan, side)
        yield f"Nats a character on the last {plan.validation_characters:,} characters."
        yield from _grid(trainings)
        yield from _by_streams(trainings)
        yield from _seeds(trainings)
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
    for hidden, (streams, rates, warmups) in GRID.items():
        values, rows = {**_defaults(hidden), "streams": streams}, []
        for rate in rates:
            asked = ({**values, "learning_rate": rate, "warmup": warmup} for warmup in warmups)
            losses = (trainings.losses(each, [COARSE])[0] for each in asked)
            rows.append((f"{rate:g}", *map(_shown, losses)))
        yield f"H {hidden:,}, {streams} total streams, after {COARSE:,} characters:\n"
        yield table(("rate", *(f"warm-up {warmup}" for warmup in warmups)), rows)


def _by_streams(trainings: Trainings) -> Iterator[str]:
    """The default rate and warm-up with other numbers of streams."""
    rows = []
    for streams in STREAMS:
        cells = [str(streams)]
        for hidden, chosen in SIZES_BY_STREAMS.items():
            values = {**_defaults(hidden), "streams": streams, "seed": 1}
            marks = [COARSE, LEARNS_WITHIN]
            cells += [_shown(trainings.losses(values, marks)[-1]) if streams in chosen else ""]
        rows.append(cells)
    yield f"The default rate and warm-up, after {LEARNS_WITHIN:,} characters:\n"
    yield table(("total streams", *(f"H {hidden}" for hidden in SIZES_BY_STREAMS)), rows)


def _seeds(trainings: Trainings) -> Iterator[str]:
    """The default recipe, and others that came near it, with several seeds."""
    rows = []
    for hidden, others in OTHERS.items():
        for other, count in [({}, SEEDS), *others]:
            values = {**_defaults(hidden), **other}
            each = [
                trainings.losses({**values, "seed": seed}, [COARSE, LEARNS_WITHIN])[-1]
                for seed in range(1, count + 1)
            ]
            figures = map(_shown, (min(each), statistics.median(each), max(each)))
            learned = f"{sum(loss < LEARNS for loss in each)} of {count}"
            recipe = f"{values['learning_rate']:.3g}", str(values["warmup"]), str(values["streams"])
            rows.append((f"{hidden:,}", *recipe, *figures, learned))
    yield f"Several seeds, after {LEARNS_WITHIN:,} characters; first the defaults of each size:\n"
    head = ("H", "rate", "warm-up", "total streams", "lowest", "median", "highest")
    yield table((*head, f"below {LEARNS}"), rows)


def _ends(trainings: Trainings) -> Iterator[str]:
    """Default runs, and one with more streams, to the default number of steps."""
    rows, known = [], (*ON_THE_WAY, *sorted({choose_steps(hidden) for hidden, *_ in TO_THE_END}))
    for hidden, other, seeds in TO_THE_END:
        steps = [each for each in known if each <= choose_steps(hidden)]
        for seed in range(1, seeds + 1):
            values = {**_defaults(hidden), **other, "seed": seed}
            characters = values["streams"] * Definition(corpus_sha256="0" * 64).seq_length
            losses = trainings.losses(values, [characters * each for each in steps])
            sizes = f"{hidden:,}", str(seed), str(values["streams"])
            rows.append(
                (*sizes, *(f"{loss:.3f}" for loss in losses), *[""] * (len(known) - len(steps)))
            )
    yield "Runs with the default rate, after so many steps; the last number is the default one:\n"
    yield table(("H", "seed", "total streams", *(f"{each:,}" for each in known)), rows)


def _to_target(trainings: Trainings, plan: Plan) -> Iterator[str]:
    """Characters to the target at the defaults, with more streams, and as in version 0.1.0."""
    rows, medians = [], []
    recipes: dict[str, dict[str, float]] = {
        "the defaults": {},
        "128 total streams": {"streams": 128},
        "version 0.1.0": DEFAULTS_OF_0_1_0,
    }
    for name, recipe in recipes.items():
        values = {**_defaults(100), **recipe}
        each = [
            _characters_to(plan.target, trainings, {**values, "seed": seed})
            for seed in range(1, plan.seeds + 1)
        ]
        medians.append(statistics.median(each))
        rows.append((name, *(f"{value:,.0f}" for value in (min(each), medians[-1], max(each)))))
    yield f"H 100, {plan.seeds} seeds: characters to {plan.target:g} nats:\n"
    yield table(("recipe", "lowest", "median", "highest"), rows)
    yield f"Ratio of the first and the last median: {medians[-1] / medians[0]:.2f}"


def _characters_to(target: float, trainings: Trainings, values: Values) -> float:
    losses = trainings.losses(values, LOOKS, target=target)
    points = [(0.0, math.inf), *zip(map(float, LOOKS), losses, strict=False)]
    if points[-1][1] > target:
        return math.inf
    return crossing(points[-2], points[-1], target)


def _shown(loss: float) -> str:
    return "diverged" if math.isinf(loss) else f"{loss:.2f}"
