"""What is known of a run so far: filled by one thread (feed.py), read by the page in another.

Everything has a bound: where a list has grown to it, every second entry is forgotten, so that the
whole run stays in sight, more coarsely.
"""

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from manychar.protocol.messages import WorkerStats

MOST_POINTS = 600
MOST_MOMENTS = 24
INTERVALS = 60
NOTICES = 50
PACES = 150

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """How the run stood after a step: `nats` and `smooth` a character, `seconds` since it began."""

    step: int
    seconds: float
    characters: int
    nats: float
    smooth: float


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The loss of a checkpoint on the held-out text, nats a character."""

    step: int
    nats: float


@dataclasses.dataclass(frozen=True)
class Share:
    """How a worker spent an interval: fractions of it, 1 in all. `silent`: nothing was heard."""

    computing: float
    exchanging: float
    waiting: float
    silent: float = 0.0


@dataclasses.dataclass(frozen=True)
class Interval:
    """What each worker did, by its name, in some seconds up to `at`, a time of a steady clock."""

    at: float
    seconds: float
    shares: Mapping[str, Share]


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """What the weights of a step write, and the hidden states over it, (characters, H)."""

    step: int
    text: str
    states: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """All of it at one time, for whoever draws it. Each change has another `version`.

    `live` says whether more is to come, `state` in words how it is; `facts` are names and values of
    the run's definition; `checkpoint` is (step, seconds since the epoch) of the newest on disk.
    """

    version: int
    run: str
    live: bool
    state: str
    steps: int
    facts: Mapping[str, str]
    points: Sequence[Point]
    validated: Sequence[Judgement]
    best: int | None
    intervals: Sequence[Interval]
    workers: Sequence[WorkerStats]
    moments: Sequence[Moment]
    checkpoint: tuple[int, float] | None
    counts: Mapping[str, int]
    notices: Sequence[str]


class History:
    """Collects what is known; `view` may be called by any thread."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._lock = threading.Lock()
        self._clear("")

    def _clear(self, run: str) -> None:
        self._version = 0
        self._known: dict[str, Any] = {
            "run": run,
            "live": True,
            "state": "connecting",
            "steps": 0,
            "facts": {},
            "best": None,
            "checkpoint": None,
            "counts": {},
            "workers": (),
        }
        self._points: list[Point] = []
        self._judged: list[Judgement] = []
        self._moments: list[Moment] = []
        self._intervals: deque[Interval] = deque(maxlen=INTERVALS)
        self._notices: deque[str] = deque(maxlen=NOTICES)
        self._roster: tuple[float, dict[str, WorkerStats]] | None = None

    def view(self) -> View:
        """Return what is known now."""
        with self._lock:
            return View(
                version=self._version,
                points=tuple(self._points),
                validated=tuple(self._judged),
                intervals=tuple(self._intervals),
                moments=tuple(self._moments),
                notices=tuple(self._notices),
                **self._known,
            )

    def begin(self, run: str, facts: Mapping[str, str]) -> None:
        """Take up a run; what was known of another one is forgotten."""
        with self._lock:
            if run != self._known["run"]:
                notices, version = self._notices, self._version
                self._clear(run)
                self._notices, self._version = notices, version
            self._know(facts=facts)

    def know(self, **known: Any) -> None:
        """Note single facts of the View by their names."""
        with self._lock:
            self._know(**known)

    def _know(self, **known: Any) -> None:
        self._known.update(known)
        self._version += 1

    def point(self, point: Point) -> None:
        """Add how the run stands. What was known of later steps is being done again: forget it."""
        with self._lock:
            for entries in (self._judged, self._moments):
                _forget_from(entries, point.step + 1)
            _forget_from(self._points, point.step)
            self._points.append(point)
            _thin(self._points, MOST_POINTS)
            self._version += 1

    def course(self, points: Sequence[Point], validated: Sequence[Judgement]) -> None:
        """Take the whole course of a run in place of what was known of it."""
        with self._lock:
            self._points, self._judged = list(points), list(validated)
            while len(self._points) > MOST_POINTS:
                _thin(self._points, MOST_POINTS)
            self._version += 1

    def judgement(self, judgement: Judgement) -> None:
        """Add the loss of a checkpoint on the held-out text."""
        with self._lock:
            _forget_from(self._judged, judgement.step)
            self._judged.append(judgement)
            _thin(self._judged, MOST_POINTS)
            self._version += 1

    def moment(self, moment: Moment) -> None:
        """Add what the weights of a step write. They may come in any order."""
        with self._lock:
            others = [other for other in self._moments if other.step != moment.step]
            self._moments = sorted([*others, moment], key=lambda one: one.step)
            _thin(self._moments, MOST_MOMENTS)
            self._version += 1

    def notice(self, text: str) -> None:
        """Add one line for whoever watches."""
        with self._lock:
            self._notices.append(text)
            self._version += 1

    def roster(self, workers: Sequence[WorkerStats], now: float) -> None:
        """Add who is there: the difference from the last time says what they did in between."""
        with self._lock:
            present = {worker.name: worker for worker in workers}
            if self._roster is not None and now > self._roster[0]:
                then, before = self._roster
                shares = {
                    name: share
                    for name, worker in present.items()
                    if name in before and (share := share_of(before[name], worker)) is not None
                }
                self._intervals.append(Interval(now, now - then, shares))
            self._roster = now, present
            self._know(workers=tuple(workers))


def share_of(before: WorkerStats, after: WorkerStats) -> Share | None:
    """Return how a worker spent the time between two rosters; None where it has come anew."""
    present = after.present - before.present
    if present <= 0:
        return None
    if after.state == "silent":
        return Share(0.0, 0.0, 0.0, 1.0)
    computing = min(max(after.computing - before.computing, 0.0), present)
    waiting = min(max(after.waiting - before.waiting, 0.0), present - computing)
    return Share(computing / present, (present - computing - waiting) / present, waiting / present)


def pace_of(points: Sequence[Point]) -> list[tuple[Point, float]]:
    """Return (point, characters a second up to it), over at least a second and 1/150 of the time.

    Reports may come in a heap after a pause: from one to the next there is no pace.
    """
    if len(points) < 2:
        return []
    least = max(1.0, (points[-1].seconds - points[0].seconds) / PACES)
    found, before = [], points[0]
    for point in points[1:]:
        seconds = point.seconds - before.seconds
        if seconds >= least:
            found.append((point, (point.characters - before.characters) / seconds))
            before = point
    return found


def seconds_left(view: View) -> float | None:
    """Return the seconds to the last step at the pace of late; None where nobody knows."""
    recent = view.points[-12:]
    if not view.live or not view.steps or len(recent) < 2:
        return None
    steps, seconds = recent[-1].step - recent[0].step, recent[-1].seconds - recent[0].seconds
    if steps <= 0 or seconds <= 0:
        return None
    return max(view.steps - recent[-1].step, 0) * seconds / steps


def bits(nats: float) -> float:
    """Return nats as bits."""
    return nats / math.log(2)


def _forget_from(entries: list[Any], step: int) -> None:
    while entries and entries[-1].step >= step:
        entries.pop()


def _thin(entries: list[T], most: int) -> None:
    """Where there are more than `most`, keep every second one, the first and the last."""
    if len(entries) > most:
        entries[:] = [*entries[:-1:2], entries[-1]]
