"""How long one shard takes at one worker, as it says itself of its last units."""

import collections
import math
import statistics

UNITS_MEASURED = 20
MEASUREMENTS = 2
MEASURE_EVERY = 10.0
LEAST_SECONDS, MOST_SECONDS = 1e-6, 1e6  # of a shard, whatever a worker says


class WorkerSpeed:
    """The seconds of a shard. A worker without a range is measured now and then.

    Then its last MEASUREMENTS units count; before there are as many, the speed with which it lost
    its range, or none. `is_too_slow` says that it has no range because a step without it is
    shorter, and not because no step needs it.
    """

    def __init__(self) -> None:
        self._seconds: collections.deque[float] = collections.deque(maxlen=UNITS_MEASURED)
        self._when_lost: float | None = None
        self.is_too_slow = False
        self._measure_at = math.inf  # while it has a range

    @property
    def has_range(self) -> bool:
        """Whether it has a range, or is new."""
        return self._measure_at == math.inf

    @property
    def seconds_a_shard(self) -> float | None:
        """The mean, so that a worker that stands still now and then is slow; None before a unit."""
        return statistics.fmean(self.recent) if self.recent else None

    @property
    def recent(self) -> list[float]:
        """The seconds of a shard in each of its last units."""
        if self.has_range or len(self._seconds) == MEASUREMENTS:
            return list(self._seconds)
        return [] if self._when_lost is None else [self._when_lost]

    @property
    def awaits_measurement(self) -> bool:
        """Whether it is too slow for a range, and was not measured again since."""
        return self.is_too_slow and len(self._seconds) < MEASUREMENTS

    def note(self, seconds: float) -> None:
        if not self.has_range and len(self._seconds) == MEASUREMENTS:
            self._seconds.popleft()
        self._seconds.append(min(max(LEAST_SECONDS, seconds), MOST_SECONDS))

    def note_no_range(self, now: float, *, too_slow: bool) -> bool:
        """Note that the worker gets no range; return whether it is newly too slow for one."""
        if self.has_range:
            self._when_lost = self.seconds_a_shard
            self._seconds.clear()
            self._measure_at = now if self._when_lost is None else now + MEASURE_EVERY
        is_new = too_slow and not self.is_too_slow
        if too_slow or not self.awaits_measurement:
            self.is_too_slow = too_slow
        return is_new

    def note_range(self) -> None:
        self._when_lost, self.is_too_slow, self._measure_at = None, False, math.inf

    def is_due(self, now: float) -> bool:
        """Whether a unit should be computed to measure this worker again."""
        return now >= self._measure_at

    def begin_measurement(self, now: float) -> None:
        self._measure_at = now + MEASURE_EVERY
