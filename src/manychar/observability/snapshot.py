"""A snapshot: all that observers know of a run at one moment."""

import collections
import dataclasses
from typing import Literal

from manychar.numerics.option import counted
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.messages import Status
from manychar.protocol.worker_tally import WITHOUT_WORKERS, WorkerStats

STRAGGLER_FROM = 0.1
SPEED_OVER, SPEED_FROM = 10.0, 1.0  # seconds


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run's figures and the statistics of all its workers.

    `earlier` are the run's seconds and characters SPEED_OVER seconds before, as far as known.
    """

    dimensions: Dimensions
    status: Status
    workers: tuple[WorkerStats, ...]
    earlier: tuple[float, int] | None = None

    @property
    def direct(self) -> list[WorkerStats]:
        """The workers and relays that the server itself has leased shards to."""
        return [worker for worker in self.workers if worker.shards and not worker.relay]

    @property
    def without_relays(self) -> list[WorkerStats]:
        """The workers, those below relays too."""
        relays = {worker.relay for worker in self.workers}
        return [
            worker
            for worker in self.workers
            if worker.name not in relays and worker.state != WITHOUT_WORKERS
        ]

    @property
    def with_shards(self) -> str:
        """How many workers hold shards, in words."""
        return counted(sum(worker.shards > 0 for worker in self.without_relays), "worker")

    @property
    def working(self) -> list[str]:
        """The names of the workers and relays that the server itself has leased shards to."""
        return [worker.name for worker in self.direct]

    @property
    def straggler(self) -> str:
        """The worker for which the steps of the last ten seconds waited most, in words."""
        slowest = max(self.direct, key=lambda worker: worker.straggling, default=None)
        if slowest is None or len(self.working) < 2 or slowest.straggling < STRAGGLER_FROM:
            return ""
        return f"waits {slowest.straggling:.0%} of the time for {slowest.name} alone"

    def share(self, doing: Literal["computing", "exchanging", "waiting"]) -> float:
        """Return how much of the last ten seconds the workers with shards did this, 0 … 1."""
        shares: list[float] = [getattr(each, doing) for each in self.direct]
        return sum(shares) / max(len(shares), 1)

    @property
    def speed(self) -> float:
        """Characters a second over the last ten seconds; at first those of the workers here."""
        seconds, characters = self.earlier or (self.status.seconds, 0)
        if (seconds := self.status.seconds - seconds) >= SPEED_FROM:
            return (self.status.characters - characters) / seconds
        size = self.dimensions
        speeds = [worker.shards_per_second for worker in self.workers if not worker.relay]
        return sum(speeds) * size.streams * size.seq_length


class Snapshots:
    """Makes snapshots of the Status messages as they come."""

    def __init__(self) -> None:
        self._page: list[WorkerStats] = []
        self._term: object = None
        self._before: collections.deque[tuple[float, int]] = collections.deque()
        self._workers: tuple[WorkerStats, ...] | None = None

    def add(self, status: Status, dimensions: Dimensions) -> Snapshot | None:
        """Return a snapshot; None while pages are missing."""
        only_figures = status.first == status.total > 0
        if not only_figures:
            self._page = [*self._page[: status.first], *status.workers]
            if len(self._page) != status.total:
                return None
            self._workers = tuple(self._page)
        if self._workers is None:
            return None
        return Snapshot(dimensions, status, self._workers, self._earlier(status))

    def _earlier(self, status: Status) -> tuple[float, int]:
        if self._term != status.run_and_term:
            self._term = status.run_and_term
            self._before.clear()
        self._before.append((status.seconds, status.characters))
        while len(self._before) > 1 and self._before[1][0] <= status.seconds - SPEED_OVER:
            self._before.popleft()
        return self._before[0]
