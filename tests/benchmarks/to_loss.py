"""Time of a fleet to a validation loss: many checkpoints, each validated after the run."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.running import Process, metrics, operation, watched
from tests.benchmarks.sides.held_out import crossing

CHARACTERS_A_CHECKPOINT = 100_000
FIRST_LOOK, LATER = 2.0, 1.5


def training_part(plan: Plan) -> Path:
    """Write the text without its held-out end; return where it is."""
    text = plan.text.read_bytes().decode()
    path = plan.scratch / "training-part.txt"
    path.write_bytes(text[: -plan.held_out].encode())
    return path


def validator_of(plan: Plan) -> Side:
    """Return the process that reads checkpoints; the looks of a run in progress are few."""
    task = dataclasses.replace(plan.task(), held_out=plan.held_out)
    return Side("validation", task)


class FleetToLoss:
    """A server and two workers, H 100; each round is another seed.

    Time counts from the first step; how long the start took before it is in `starts`.
    """

    def __init__(self, plan: Plan, validator: Side, flags: Sequence[str] = ()) -> None:
        self._plan, self._validator, self._flags = plan, validator, flags
        self.starts: list[float] = []

    def measure(self, turn: int) -> float:
        """Return seconds to the target, infinite if it is not reached in time."""
        with tempfile.TemporaryDirectory(dir=self._plan.scratch) as folder:
            run_dir = Path(folder) / "run"
            if not self._train(run_dir, turn):
                return math.inf
            return self._reached_at(run_dir)

    def _train(self, run_dir: Path, seed: int) -> bool:
        """Train until a look finds the loss low enough, or the time is over."""
        text = training_part(self._plan)
        flags = [
            *("--workers", "2", "--seed", str(seed), "--numerics", "native", *self._flags),
            *operation(run_dir, checkpoint_every=self._checkpoint_every()),
        ]
        with Process(["manychar", "train", str(text), *flags]) as fleet:
            next(watched(run_dir, [fleet]))
            start, look = time.monotonic(), FIRST_LOOK
            while look <= self._plan.cap * LATER:
                look_at = start + min(look, self._plan.cap)
                time.sleep(max(0.0, look_at - time.monotonic()))
                fleet.must_live()
                if self._loss(_checkpoints(run_dir)[-1][1]) <= self._plan.target:
                    return True
                look *= LATER
        return False

    def _loss(self, path: Path) -> float:
        return float(self._validator.ask(path))

    def _reached_at(self, run_dir: Path) -> float:
        """Judge checkpoint after checkpoint; return when the first low enough was, interpolated."""
        clock = _Clock(run_dir)
        self.starts.append(clock.start)
        before = None
        for step, path in _checkpoints(run_dir):
            now = (clock.time_of(step), self._loss(path))
            if now[1] <= self._plan.target:
                return now[0] if before is None else crossing(before, now, self._plan.target)
            before = now
        return math.inf

    def _checkpoint_every(self) -> int:
        """Return how many steps read about CHARACTERS_A_CHECKPOINT."""
        from manychar.numerics.run_definition import Definition  # noqa: PLC0415

        sizes = Definition(corpus_sha256="0" * 64)
        given = dict(zip(self._flags[::2], map(int, self._flags[1::2]), strict=True))
        shards = given.get("--shards", sizes.shards)
        streams = given.get("--streams", sizes.streams)
        return max(1, CHARACTERS_A_CHECKPOINT // (shards * streams * sizes.seq_length))


class _Clock:
    """When a run was at a step, from the lines of its metrics."""

    def __init__(self, run_dir: Path) -> None:
        self._points = [(line["step"], line["seconds"]) for line in metrics(run_dir)]
        self.start = max(0.0, self._seconds(0))

    def time_of(self, step: int) -> float:
        """Return seconds since the first step."""
        return self._seconds(step) - self.start

    def _seconds(self, step: int) -> float:
        """Read between two lines; before the first and after the last, go on at the pace there."""
        points = self._points
        place = next((i for i, (at, _) in enumerate(points) if at >= step), len(points) - 1)
        place = min(max(place, 1), len(points) - 1)
        (s0, t0), (s1, t1) = points[place - 1], points[place]
        return float(t0 + (t1 - t0) * (step - s0) / (s1 - s0))


def _checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of a run's checkpoints, oldest first."""
    paths = sorted((run_dir / "checkpoints").glob("step-*.safetensors"))
    return [(int(path.stem.removeprefix("step-")), path) for path in paths]
