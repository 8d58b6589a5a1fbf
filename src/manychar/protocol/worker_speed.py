"""How long one shard takes at one worker, as it says itself of its last units."""

import collections
import statistics

UNITS_MEASURED = 20
GOOD_PROBES = 2
PROBE_EVERY = 10.0
LEAST_SECONDS, MOST_SECONDS = 1e-6, 1e6  # of a shard, whatever a worker says


class WorkerSpeed:
    """The seconds of a shard. A worker that is too slow for a range is probed now and then.

    Without a range it keeps the figure for which it lost it, until it has computed GOOD_PROBES
    units anew; then the last GOOD_PROBES count, until it has a range.
    """

    def __init__(self) -> None:
        self._seconds: collections.deque[float] = collections.deque(maxlen=UNITS_MEASURED)
        self._when_too_slow: float | None = None
        self._probe_at = 0.0

    @property
    def seconds_a_shard(self) -> float | None:
        """The mean, so that a worker that stands still now and then is slow; None before a unit."""
        if self.awaits_probes:
            return self._when_too_slow
        return statistics.fmean(self._seconds) if self._seconds else None

    @property
    def recent(self) -> list[float]:
        """The seconds of a shard in each of its last units."""
        return list(self._seconds) or ([] if self._when_too_slow is None else [self._when_too_slow])

    @property
    def awaits_probes(self) -> bool:
        """Whether it is too slow for a range, and was not measured again since."""
        return self.is_too_slow and len(self._seconds) < GOOD_PROBES

    @property
    def is_too_slow(self) -> bool:
        """Whether it has no range because a step without it is shorter."""
        return self._when_too_slow is not None

    def note(self, seconds: float) -> None:
        if self.is_too_slow and len(self._seconds) == GOOD_PROBES:
            self._seconds.popleft()
        self._seconds.append(min(max(LEAST_SECONDS, seconds), MOST_SECONDS))

    def note_no_range(self, now: float) -> bool:
        """Note that the worker gets no range; return whether that is new, and for its speed."""
        seconds = self.seconds_a_shard
        if seconds is None or self.is_too_slow:
            return False
        self._when_too_slow = seconds
        self._seconds.clear()
        self._probe_at = now + PROBE_EVERY
        return True

    def note_range(self) -> None:
        self._when_too_slow = None

    def is_due(self, now: float) -> bool:
        """Whether a unit should be computed to measure this worker again."""
        return self.is_too_slow and now >= self._probe_at

    def begin_probe(self, now: float) -> None:
        self._probe_at = now + PROBE_EVERY
