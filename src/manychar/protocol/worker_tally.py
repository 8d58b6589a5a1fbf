"""What a worker has done: in total since it joined, and of its time over the last ten seconds.

It computes for as long as it says itself. It waits from the moment its last unit is accepted until
something is asked of it again; the rest of its time is the exchange.
"""

import collections
import dataclasses
from typing import NamedTuple

MARKS = 10
MARK_EVERY = 1.0


class _Mark(NamedTuple):
    """The totals at one time."""

    at: float
    gradients: int
    computing: float
    waiting: float
    straggling: float


class RecentUse(NamedTuple):
    """Shares of the last ten seconds, 0 … 1, and gradients a second in them.

    `straggling` is the share in which the step waited for this worker alone.
    """

    computing: float
    exchanging: float
    waiting: float
    straggling: float
    speed: float


@dataclasses.dataclass
class WorkerTally:
    """The totals since the time `since`: counts, and seconds.

    `waiting` is up to the last accepted unit at `delivered_at`.
    """

    since: float = 0.0
    gradients: int = 0
    dropped: int = 0
    computing: float = 0.0
    waiting: float = 0.0
    straggling: float = 0.0
    delivered_at: float = 0.0
    marks: collections.deque[_Mark] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=MARKS)
    )

    def delivered(self, gradients: int, seconds: float, now: float) -> None:
        """Count an accepted unit, which took so many seconds to compute."""
        self.gradients += gradients
        self.computing += seconds
        self.delivered_at = now

    def waits_until(self, now: float) -> None:
        """Note that nothing was asked of it since its last unit, and something is now."""
        self.waiting += now - self.delivered_at
        self.delivered_at = now

    def recent(self, now: float, *, is_awaited: bool) -> RecentUse:
        """Return how its recent time was used; to be called every now and then."""
        waiting = self.waiting + (0.0 if is_awaited else now - self.delivered_at)
        here = _Mark(now, self.gradients, self.computing, waiting, self.straggling)
        if not self.marks:
            self.marks.append(_Mark(self.since, 0, 0.0, 0.0, 0.0))
        before = self.marks[0]
        if now - self.marks[-1].at >= MARK_EVERY:
            self.marks.append(here)
        seconds = max(now - before.at, 1e-9)
        computing, waiting, straggling = (
            min(1.0, max(0.0, here[i] - before[i]) / seconds) for i in (2, 3, 4)
        )
        exchanging = max(0.0, 1 - computing - waiting)
        speed = (here.gradients - before.gradients) / seconds
        return RecentUse(computing, exchanging, waiting, straggling, speed)
