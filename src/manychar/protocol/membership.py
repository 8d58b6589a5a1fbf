"""The peers that are connected, and the leases of the workers.

A peer is one connection. A lease assigns a shard to a worker until it is revoked; leases are spread
evenly over the workers, and a change moves as few of them as it can.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

from manychar.protocol import messages
from manychar.protocol.events import Suspended
from manychar.protocol.messages import HOST_LENGTH, Hello, Owner, Peer, Role, Unit, UnitState

FORGET_SILENT_AFTER = 60.0
SLOW_FACTOR = 4
FIRST_RESEND_AFTER = 1.0
LONGEST_RESEND_AFTER = 30.0
LONGEST_UNIT = 3600.0
MAX_DOUBLINGS = 10


class PeerState(enum.Enum):
    """The state of a connection, as the server sees it."""

    UNKNOWN = "unknown"
    ADMITTED = "admitted"
    WORKING = "working"
    SILENT = "silent"
    OBSERVING = "observing"


@dataclasses.dataclass
class WorkerTally:
    """What one worker has done since the time `since`.

    `accepted` counts gradients, `dropped` messages. `computing` is in seconds, as the worker last
    reported. `waited` is the time without anything to compute, up to the last accepted gradient at
    `delivered_at`.
    """

    since: float = 0.0
    accepted: int = 0
    dropped: int = 0
    computing: float = 0.0
    waited: float = 0.0
    delivered_at: float = 0.0

    def waits_until(self, now: float) -> None:
        """Note that nothing was asked of it since its last gradient, and something is now."""
        self.waited += now - self.delivered_at
        self.delivered_at = now


@dataclasses.dataclass
class Member:
    """What the server knows of one peer; it was heard at the time `heard_at`.

    `owner` is the owner of its key, None where there are no keys. `slowest` is its longest recent
    piece of work, in seconds; `units` are those of its last heartbeat, at `units_at`.
    """

    peer: Peer
    name: str
    role: Role
    instance: str
    state: PeerState
    heard_at: float
    owner: Owner | None = None
    slowest: float = 0.0
    units: tuple[Unit, ...] = ()
    units_at: float = -1.0
    host: str = ""
    tally: WorkerTally = dataclasses.field(default_factory=WorkerTally)

    @property
    def identities(self) -> messages.Identities:
        return self.name, self.owner.name if self.owner else self.name

    def is_busy(self, lease: int, step: int) -> bool:
        """Whether its last heartbeat lists this unit as queued, or another as being computed.

        A worker that computes reads no messages: it may not know of a unit that was granted since.
        """
        return any(
            unit.flag == UnitState.COMPUTING
            or (unit.lease == lease and unit.step == step and unit.flag == UnitState.QUEUED)
            for unit in self.units
        )


@dataclasses.dataclass
class Lease:
    """One shard at one worker. `begun` once a Grant has gone out.

    `asked_step` was granted at `asked_at`, and is granted again after `resend_after` seconds: at
    first `first_resend_after`, time for two heartbeats, then twice as long each time. `renewed` is
    how often in a row the lease was renewed because a gradient was computed from another state.
    """

    number: int
    shard: int
    peer: Peer
    begun: bool = False
    asked_step: int = -1
    asked_at: float = 0.0
    first_resend_after: float = FIRST_RESEND_AFTER
    resend_after: float = FIRST_RESEND_AFTER
    renewed: int = 0

    def ask(self, step: int, now: float) -> None:
        again = self.asked_step == step
        longer = max(self.first_resend_after, min(2 * self.resend_after, LONGEST_RESEND_AFTER))
        self.resend_after = longer if again else self.first_resend_after
        self.asked_step, self.asked_at = step, now


class Membership:
    """The members by peer, as they joined, and the leases by shard.

    `silence` is the lease timeout in seconds.
    """

    def __init__(self, shards: int, *, silence: float) -> None:
        self.members: dict[Peer, Member] = {}
        self.leases: dict[int, Lease] = {}
        self._shards = shards
        self._silence = silence
        self._numbers = 0
        self._takeovers = [0] * shards

    def admit(self, peer: Peer, hello: Hello, owner: Owner | None, now: float) -> Member:
        role = Role(hello.role)
        member = self.members[peer] = Member(
            peer=peer,
            name=hello.name,
            role=role,
            instance=hello.instance,
            state=PeerState.OBSERVING if role is Role.OBSERVER else PeerState.ADMITTED,
            heard_at=now,
            owner=owner,
            host=messages.one_line(hello.machine.get("host", ""))[:HOST_LENGTH],
        )
        return member

    def state_of(self, peer: Peer) -> PeerState:
        member = self.members.get(peer)
        return member.state if member else PeerState.UNKNOWN

    def suspended(self, event: Suspended, now: float) -> None:
        """Do not count the time in which the server was stopped as the members' silence."""
        for member in self.members.values():
            member.heard_at += event.seconds

    def predecessors(self, peer: Peer, hello: Hello) -> list[Member]:
        """Return the members that it replaces: of this connection, or workers of this name."""
        return [
            member
            for member in self.members.values()
            if member.peer == peer
            or (hello.role == member.role == Role.WORKER and hello.name == member.name)
        ]

    def workers(self) -> list[Member]:
        """Return the members that can compute, in the order in which they joined."""
        return [m for m in self.members.values() if m.state is PeerState.WORKING]

    def observers(self) -> list[Member]:
        return [m for m in self.members.values() if m.state is PeerState.OBSERVING]

    def holders(self) -> set[Peer]:
        return {lease.peer for lease in self.leases.values()}

    def leases_of(self, peer: Peer) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.peer == peer]

    def rebalance(self) -> tuple[list[Lease], list[Lease]]:
        """Spread the shards over the present workers; return leases revoked and given."""
        holders = {shard: lease.peer for shard, lease in self.leases.items()}
        wanted = spread(self._shards, holders, [member.peer for member in self.workers()])
        revoked = [each for each in self.leases.values() if wanted.get(each.shard) != each.peer]
        for lease in revoked:
            del self.leases[lease.shard]
            if self.state_of(lease.peer) is PeerState.SILENT:
                self._takeovers[lease.shard] += 1
        missing = [item for item in sorted(wanted.items()) if item[0] not in self.leases]
        return revoked, [self.lease(shard, peer) for shard, peer in missing]

    def lease(self, shard: int, peer: Peer) -> Lease:
        self._numbers += 1
        first = max(FIRST_RESEND_AFTER, self._silence / 2)
        lease = self.leases[shard] = Lease(self._numbers, shard, peer, first_resend_after=first)
        return lease

    def accepted(self, shard: int, peer: Peer) -> None:
        """Note that a gradient of the shard was accepted, from any peer: its counts start again."""
        self._takeovers[shard] = 0
        if (lease := self.leases.get(shard)) is not None:
            lease.renewed = 0
            if lease.peer != peer:
                lease.begun = False  # it lacks the next hidden state: a Grant brings it

    def limit(self, member: Member) -> float:
        """Return how long this member may be silent, in seconds.

        Heartbeats come from between the pieces of a computation, so longer silence is a hang or a
        lost connection. The limit doubles with each takeover of what it holds, so that no unit can
        be too long for every worker.
        """
        held = [self._takeovers[lease.shard] for lease in self.leases_of(member.peer)]
        takeovers = max(held, default=0)
        longest = max(self._silence, min(SLOW_FACTOR * member.slowest, LONGEST_UNIT))
        return float(longest * 2 ** min(takeovers, MAX_DOUBLINGS))


def spread(shards: int, holders: Mapping[int, Peer], workers: Sequence[Peer]) -> dict[int, Peer]:
    """Return the holder of each shard: evenly, and as much as possible as before.

    `holders` maps shards to their present holders; `workers` are in the order in which they
    joined. Each keeps its lowest shards, because it computes those first. Where the numbers differ
    by one, the larger ones go to the workers with most shards, so that few move.
    """
    if not workers:
        return {}
    held: dict[Peer, list[int]] = {worker: [] for worker in workers}
    for shard in range(shards):
        if (holder := holders.get(shard)) in held:
            held[holder].append(shard)
    smallest, larger = divmod(shards, len(workers))
    by_load = sorted(workers, key=lambda worker: -len(held[worker]))
    quota = {worker: smallest + (rank < larger) for rank, worker in enumerate(by_load)}
    kept = {shard: worker for worker in workers for shard in held[worker][: quota[worker]]}
    free = iter([shard for shard in range(shards) if shard not in kept])
    for worker in workers:
        for _ in range(quota[worker] - len(held[worker])):
            kept[next(free)] = worker
    return kept
