"""Time of a fleet to a validation loss: many checkpoints, each validated after the run."""

import dataclasses
import math
import tempfile
from pathlib import Path

from tests.benchmarks.asking import Side
from tests.benchmarks.plan import Plan
from tests.benchmarks.running import manychar, metrics, operation, sizes, watched
from tests.benchmarks.sides.crossing import crossing
from tests.benchmarks.task import CHARACTERS_A_LOOK, Task

MOST_CHARACTERS = 4_000_000


def until_loss(plan: Plan, task: Task, form: str = "") -> Task:
    """Return the task of a side that trains, or validates, until the plan's loss."""
    return dataclasses.replace(
        task,
        validation_characters=plan.validation_characters,
        target=plan.target,
        cap=plan.cap,
        form=form,
    )


class FleetToLoss:
    """A server and two workers; each round is another seed.

    Time counts from the first step; how long the start took before it is in `starts`.
    """

    def __init__(self, plan: Plan, task: Task, validator: Side) -> None:
        self._plan, self._task, self._validator = plan, task, validator
        self.starts: list[float] = []

    def measure(self, turn: int) -> float:
        """Return seconds to the target, infinite if it is not reached in time."""
        with tempfile.TemporaryDirectory(dir=self._plan.scratch) as folder:
            run_dir = Path(folder) / "run"
            self._train(run_dir, turn)
            return self._reached_at(run_dir)

    def _train(self, run_dir: Path, seed: int) -> None:
        """Train until enough characters were read, or the time is over."""
        text = self._plan.scratch / "training-part.txt"
        whole = self._plan.text.read_bytes().decode()
        text.write_bytes(whole[: -self._plan.validation_characters].encode())
        task = self._task
        steps = max(1, CHARACTERS_A_LOOK // (task.shards * task.streams * task.seq_length))
        flags = [
            *("--workers", "2", "--seed", str(seed), *sizes(task)),
            *operation(run_dir, checkpoint_every=steps),
        ]
        with manychar("train", str(text), *flags) as fleet:
            for lines in watched(run_dir, [fleet]):
                first, last = lines[0], lines[-1]
                over = last["seconds"] - first["seconds"] > self._plan.cap
                if over or last["characters"] > MOST_CHARACTERS:
                    break

    def _reached_at(self, run_dir: Path) -> float:
        """Validate checkpoint after checkpoint; return when the target was, interpolated."""
        clock = Clock([(line["step"], line["seconds"]) for line in metrics(run_dir)])
        self.starts.append(clock.start)
        before = None
        for path in sorted((run_dir / "checkpoints").glob("step-*.safetensors")):
            seconds = clock.time_of(int(path.stem.removeprefix("step-")))
            now = (seconds, float(self._validator.ask(path)))
            if now[1] <= self._plan.target:
                return now[0] if before is None else crossing(before, now, self._plan.target)
            before = now
        return math.inf


class Clock:
    """When a run was at a step, from (step, seconds) of the lines of its metrics."""

    def __init__(self, lines: list[tuple[int, float]]) -> None:
        (s0, t0), (s1, t1) = lines[:2]
        # A pace that falls would put the first step before the run itself.
        self.start = max(0.0, t0 - (t1 - t0) * s0 / (s1 - s0))
        self._points = [(0, self.start), *lines] if s0 else lines

    def time_of(self, step: int) -> float:
        """Return seconds since the first step; after the last line, go on at the pace there."""
        points = self._points
        place = next((i for i, (at, _) in enumerate(points) if at >= step), len(points) - 1)
        (s0, t0), (s1, t1) = points[max(place, 1) - 1], points[max(place, 1)]
        return t0 + (t1 - t0) * (step - s0) / (s1 - s0) - self.start
