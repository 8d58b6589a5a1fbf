"""What a worker has done: in total since it joined, and of its time over the last ten seconds.

It computes for as long as it says itself of each unit, and of the one that is asked of it now for
as long as it took lately. It waits from the moment its last unit is accepted until something is
asked of it again; the rest of its time is the exchange.
"""

import collections
import dataclasses
from typing import Any, NamedTuple

from manychar.protocol import field_types as field

RECENT, MARK_EVERY = 10.0, 1.0
WITHOUT_WORKERS = "without-workers"  # the state of a relay


# Many fields: one figure each.
class WorkerStats(NamedTuple):
    """Figures of one worker.

    `gradients` counts accepted ones since it joined, `dropped` its messages. `shard_seconds` is how
    long it takes for a shard, 0 before that is known, `late_seconds` for how long the step has
    waited for it. The next fields are shares of the last ten seconds, 0 … 1, and shards a second in
    them; `straggling` is the share in which the step waited for this worker alone.
    `longest_piece_seconds` is the longest time between two calls of the kernel's progress callback,
    lately. `relay` is the name of the relay that it works for; nothing is the server.
    """

    name: field.Name
    host: field.Text
    state: field.Name
    shards: field.Integer
    gradients: field.Integer
    dropped: field.Integer
    shard_seconds: field.Number
    late_seconds: field.Number
    computing: field.Number
    exchanging: field.Number
    waiting: field.Number
    straggling: field.Number
    shards_per_second: field.Number
    longest_piece_seconds: field.Number = 0.0
    relay: field.Text = ""


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
    marks: collections.deque[tuple[float, ...]] = dataclasses.field(
        default_factory=collections.deque
    )

    def delivered(self, gradients: int, seconds: float, now: float) -> None:
        """Count an accepted unit, which took so many seconds to compute."""
        self.gradients += gradients
        self.computing += seconds
        self.delivered_at = now

    def waits_until(self, now: float) -> None:
        """Note that it is asked for a unit now, and has waited for that since its last one."""
        self.waiting += now - self.delivered_at
        self.delivered_at = now

    def suspended(self, seconds: float) -> None:
        self.since += seconds
        self.delivered_at += seconds
        self.marks = collections.deque((at + seconds, *totals) for at, *totals in self.marks)

    def recent(self, now: float, *, expected: float) -> dict[str, Any]:
        """Return those fields of WorkerStats, by name; to be called every now and then.

        It takes `expected` seconds to compute what is asked of it now, 0 where that is nothing.
        """
        since_then = max(0.0, now - self.delivered_at)  # a suspension may be noticed late
        waiting = self.waiting + (0.0 if expected else since_then)
        here = now, self.gradients, self.computing, waiting, self.straggling
        if not self.marks:
            self.marks.append((self.since, 0.0, 0.0, 0.0, 0.0))
        while len(self.marks) > 1 and now - self.marks[1][0] >= RECENT:
            self.marks.popleft()
        seconds, *spent = (b - a for a, b in zip(self.marks[0], here, strict=True))
        if now - self.marks[-1][0] >= MARK_EVERY:
            self.marks.append(here)
        speed, *shares = (max(0.0, n) / max(seconds, 1e-9) for n in spent)
        computing, waiting, straggling = (min(1.0, share) for share in shares)
        computing += min(expected, since_then) / max(seconds, 1e-9)  # of the unit in hand
        computing = min(computing, 1 - waiting)  # a unit may have begun before
        return {
            "computing": computing,
            "exchanging": max(0.0, 1 - computing - waiting),
            "waiting": waiting,
            "straggling": straggling,
            "shards_per_second": speed,
        }
