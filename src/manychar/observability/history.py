"""A run's history, for plot, exporters and dashboard: its losses, and how fast it went."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError
from manychar.storage.metrics import read_metrics
from manychar.storage.run_directory import RunDirectory
from manychar.storage.validation_log import read_validation_losses

SPEEDS = 150


class Point(NamedTuple):
    """A run after a step. Losses are nats a character, `seconds` is the training time."""

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
    status, nats = snapshot.status, snapshot.status.loss / snapshot.dimensions.seq_length
    return Point(status.step, status.characters, status.seconds, nats, snapshot.nats)


def read_history(directory: RunDirectory) -> History:
    """Read what a run has logged so far. Raises UserError for a log that cannot be read."""
    size, points = directory.definition.seq_length, []
    for line in read_metrics(directory.path):
        step, characters, seconds = line["step"], line["characters"], line.get("seconds", 0.0)
        losses = line["loss"] / size, line["smooth_loss"] / size
        points.append(Point(int(step), int(characters), float(seconds), *losses))
    return History(tuple(points), tuple(sorted(read_validation_losses(directory).items())))


def require_points(history: History, directory: RunDirectory) -> None:
    """Raise UserError for a run that has logged no losses yet."""
    if not history.points:
        raise UserError(f"{directory.path}: no losses yet: there is a line every 100 steps")


def speeds(points: Sequence[Point]) -> list[tuple[Point, float]]:
    """Return (point, characters a second up to it), over at least a second and 1/150 of the time.

    Reports may come in a burst after a pause: from one to the next there is no speed.
    """
    if len(points) < 2:
        return []
    least = max(1.0, (points[-1].seconds - points[0].seconds) / SPEEDS)
    found, before = [], points[0]
    for point in points[1:]:
        seconds = point.seconds - before.seconds
        if seconds >= least:
            found.append((point, (point.characters - before.characters) / seconds))
            before = point
    return found


def thinned(entries: Sequence[Any], most: int) -> tuple[Any, ...]:
    """Return at most `most` entries: every second one, the first and the last, while too many."""
    while len(entries) > most:
        entries = [*entries[:-1:2], entries[-1]]
    return tuple(entries)
