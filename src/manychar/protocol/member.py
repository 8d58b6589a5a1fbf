"""What the server knows of one peer."""

import dataclasses
import enum
import math

from manychar.numerics.tree_reduction import Range
from manychar.protocol.messages import Identities, Owner, Peer, Role, Unit, UnitState
from manychar.protocol.range_cut import rounds
from manychar.protocol.worker_speed import WorkerSpeed
from manychar.protocol.worker_tally import WorkerStats, WorkerTally

OWN_PEER, SHARE_NAME = b"", "server"
"""The server's own share of the computing. No connection has the empty identity: a ROUTER gives
each unnamed connection a number."""


class PeerState(enum.StrEnum):
    """The state of a connection, as the server sees it."""

    UNKNOWN = "unknown"
    ADMITTED = "admitted"
    WORKING = "working"
    SILENT = "silent"
    OBSERVING = "observing"


# Many attributes: all that is known of one peer, in one value.
@dataclasses.dataclass
class Member:
    """What the server knows of one peer; it was heard at the time `heard_at`.

    `namesake_at` is when another worker of its name connected.
    `owner` is the owner of its key, None where there are no keys. `longest_piece` is that of its
    recent work, in seconds; `units` are those of its last heartbeat, at `units_at`. `renewals` is
    how often in a row a lease was renewed because it had computed a unit from another state.
    `measured` are lease, step and shards of the last unit that `speed` counts. A relay has
    `workers` below it, and `levels` of relays, its own included, as it says; `below` is of its
    status.
    """

    peer: Peer
    name: str
    role: Role
    instance: str
    state: PeerState
    heard_at: float
    namesake_at: float = math.inf
    owner: Owner | None = None
    is_relay: bool = False
    workers: int = 1
    levels: int = 0
    below: tuple[WorkerStats, ...] = ()
    longest_piece: float = 0.0
    units: tuple[Unit, ...] = ()
    units_at: float = -1.0
    asked: int = 0
    renewals: int = 0
    host: str = ""
    tally: WorkerTally = dataclasses.field(default_factory=WorkerTally)
    speed: WorkerSpeed = dataclasses.field(default_factory=WorkerSpeed)
    measured: tuple[int, int, Range] | None = None

    def seconds_for(self, shards: int) -> float:
        """Return how long so many shards take by its speed; as long as one likes before a unit."""
        seconds = self.speed.seconds_a_shard
        return rounds(shards, max(1, self.workers)) * (seconds or math.inf) if shards else 0.0

    @property
    def identities(self) -> Identities:
        return self.name, self.owner.name if self.owner else self.name

    def is_busy(self, lease: int, step: int) -> bool:
        """Whether its last heartbeat lists this unit as queued, or another as being computed.

        A worker that computes reads no messages: it may not know of a unit that was granted since.
        """
        computing = any(unit.state == UnitState.COMPUTING for unit in self.units)
        return computing or self.has_unit(lease, step)

    def has_unit(self, lease: int, step: int) -> bool:
        """Whether its last heartbeat lists a unit of this lease and step, queued or begun."""
        here = {(unit.lease, unit.step) for unit in self.units if unit.state != UnitState.SENT}
        return (lease, step) in here
