"""A run's history, for all that show a run: its losses, its speed, and the time left."""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from manychar.observability.snapshot import Snapshot
from manychar.storage.journal import read_metrics
from manychar.storage.run_directory import RunDirectory
from manychar.storage.validation_log import read_validation_losses

RECENT_POINTS = 26  # of a live run the last five seconds, or so many steps that take longer


class Point(NamedTuple):
    """A run after a step. Losses are nats a character, `seconds` is the training time.

    `loss` is the mean of the last 100 steps at most.
    """

    step: int
    characters: int
    seconds: float
    loss: float
    smooth_loss: float


@dataclasses.dataclass(frozen=True)
class History:
    """The points of a run, and (step, validation loss in nats a character), by rising steps."""

    points: tuple[Point, ...] = ()
    validation_losses: tuple[tuple[int, float], ...] = ()

    def thinned(self, most: int) -> Self:
        """Return this history with at most so many entries of each kind."""
        return type(self)(thinned(self.points, most), thinned(self.validation_losses, most))


def point_of(snapshot: Snapshot) -> Point:
    """Return a live run's newest point."""
    status = snapshot.status
    losses = status.loss_nats_per_character, status.smooth_loss_nats_per_character
    return Point(status.step, status.characters, status.seconds, *losses)


def read_history(directory: RunDirectory) -> History:
    """Read what a run has logged so far. Raises UserError for a log that cannot be read."""
    points = []
    for line in read_metrics(directory.path):
        losses = line["loss_nats_per_character"], line["smooth_loss_nats_per_character"]
        points.append(Point(line["step"], line["characters"], line["seconds"], *losses))
    return History(tuple(points), tuple(sorted(read_validation_losses(directory).items())))


def recent_speed(points: Sequence[Point]) -> float | None:
    """Return characters a second; None before it is known.

    It is the median from point to point: one long wait tells nothing of the time left.
    """
    speeds = [
        (now.characters - before.characters) / (now.seconds - before.seconds)
        for before, now in itertools.pairwise(points[-RECENT_POINTS:])
        if now.seconds > before.seconds
    ]
    return statistics.median(speeds) if speeds else None


def seconds_left(points: Sequence[Point], steps: int) -> float | None:
    """Return the seconds to the last of `steps`, 0 for no end; None where they are not known."""
    speed = recent_speed(points)
    if not steps or not speed:
        return None
    last = points[-1]
    return max(steps - last.step, 0) * last.characters / max(last.step, 1) / speed


def thinned(entries: Sequence[Any], most: int) -> tuple[Any, ...]:
    """Return at most `most` entries: every second one, the first and the last, while too many."""
    while len(entries) > most:
        entries = [*entries[:-1:2], entries[-1]]
    return tuple(entries)
