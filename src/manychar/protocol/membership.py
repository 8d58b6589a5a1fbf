"""The peers that are connected, and the leases of the workers.

A peer is one connection. A lease assigns a range of shards to a worker until it is revoked. Between
two steps each worker holds one range at most; within a step, shards that nobody holds are leased in
addition, and what somebody holds stays.
"""

import dataclasses
import heapq
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from manychar.numerics.tree_reduction import Range
from manychar.protocol import messages
from manychar.protocol.client_session import HEARTBEATS_PER_SILENCE, LONGEST_INTERVAL
from manychar.protocol.member import OWN_PEER, Member, PeerState
from manychar.protocol.messages import HOST_LENGTH, Hello, Owner, Peer, Role
from manychar.protocol.range_cut import (
    MOVE_GAIN,
    best_cut,
    count_of,
    expected_step,
    is_too_slow,
    numbers_of,
    runs_of,
)

MOVE_EVERY = 1.0
FORGET_SILENT_AFTER = 60.0
SLOW_FACTOR = 4
FIRST_RESEND_AFTER = 1.0
LONGEST_RESEND_AFTER = 30.0
LONGEST_UNIT = 3600.0
IDLE_SILENCE = HEARTBEATS_PER_SILENCE * LONGEST_INTERVAL
MAX_DOUBLINGS = 10


@dataclasses.dataclass
class Lease:
    """A range of shards at one worker.

    `asked_step` was granted at `asked_at`, and is granted again after `resend_after` seconds: at
    first `first_resend_after`, time for two heartbeats, then twice as long each time. Where the
    server was `suspended` meanwhile, its worker may have been, too.
    """

    number: int
    shards: Range
    peer: Peer
    asked_step: int = -1
    asked_number: int = 0
    asked_at: float = 0.0
    first_resend_after: float = FIRST_RESEND_AFTER
    resend_after: float = FIRST_RESEND_AFTER
    duplicate: bool = False
    suspended: bool = False

    @property
    def numbers(self) -> range:
        return numbers_of(self.shards)

    def ask(self, step: int, now: float) -> None:
        again = self.asked_step == step
        longer = max(self.first_resend_after, min(2 * self.resend_after, LONGEST_RESEND_AFTER))
        self.resend_after = longer if again else self.first_resend_after
        self.suspended &= again
        self.asked_step, self.asked_at = step, now


# Many methods: peers and leases change together.
class Membership:
    """The members by peer, as they joined, and the leases by number.

    `silence` is the lease timeout in seconds.
    """

    def __init__(self, shards: int, *, silence: float) -> None:
        self.members: dict[Peer, Member] = {}
        self.leases: dict[int, Lease] = {}
        self._leases_of: dict[Peer, dict[int, Lease]] = {}  # with 1,000 peers, no search
        self.scope = 0, shards - 1
        self.silence = silence
        self._numbers = 0
        self._takeovers = [0] * shards
        self._accepted_under = [(-1, 0)] * shards  # step and lease of the last acceptance
        self._must_cut = False
        self._cut_for: dict[Peer, int] = {}  # by holder, how many workers compute there
        self._next_move = 0.0
        self.moves = 0  # of ranges, for speed

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
            is_relay=messages.RELAYS in hello.machine,
            workers=messages.RELAYS not in hello.machine,
            host=messages.one_line(hello.machine.get("host", ""))[:HOST_LENGTH],
        )
        return member

    def state_of(self, peer: Peer) -> PeerState:
        member = self.members.get(peer)
        return member.state if member else PeerState.UNKNOWN

    def suspended(self, seconds: float) -> None:
        for member in self.members.values():
            member.heard_at += seconds
            member.tally.suspended(seconds)
        for lease in self.leases.values():
            lease.asked_at += seconds
            lease.suspended = True

    def predecessors(self, peer: Peer, hello: Hello) -> list[Member]:
        """Return the members that it replaces: of this connection, or workers of this name."""
        return [
            member
            for member in self.members.values()
            if member.peer == peer
            or (hello.role == member.role == Role.WORKER and hello.name == member.name)
        ]

    def workers(self) -> list[Member]:
        """Return the members that can compute, as they joined; with relays, not this server."""
        here = [m for m in self.members.values() if m.state is PeerState.WORKING and m.workers]
        relayed = any(member.is_relay for member in here)
        return [m for m in here if not (relayed and m.peer == OWN_PEER)]

    def relays(self) -> list[Member]:
        """Return the relays that were admitted, whether workers are below or not."""
        here = (PeerState.WORKING, PeerState.SILENT)
        return [m for m in self.members.values() if m.is_relay and m.state in here]

    def observers(self) -> list[Member]:
        return [m for m in self.members.values() if m.state is PeerState.OBSERVING]

    def holders(self) -> set[Peer]:
        return {*self._leases_of}

    def leases_of(self, peer: Peer) -> list[Lease]:
        return list(self._leases_of.get(peer, {}).values())

    def lease(self, shards: Range, peer: Peer) -> Lease:
        self._numbers += 1
        first = max(FIRST_RESEND_AFTER, self.silence / 2)
        lease = Lease(self._numbers, shards, peer, first_resend_after=first)
        self.leases[lease.number] = lease
        self._leases_of.setdefault(peer, {})[lease.number] = lease
        return lease

    def end_lease(self, lease: Lease) -> None:
        del self.leases[lease.number]
        del self._leases_of[lease.peer][lease.number]
        if not self._leases_of[lease.peer]:
            del self._leases_of[lease.peer]

    def set_scope(self, scope: Range) -> None:
        """Have these shards leased in the next step."""
        self._must_cut |= scope != self.scope
        self.scope = scope

    def workers_changed(self) -> None:
        self._must_cut = True

    def end_leases(self, peer: Peer) -> list[Lease]:
        """Remove and return the leases of a worker that is gone or silent."""
        ended = self.leases_of(peer)
        for lease in ended:
            self.end_lease(lease)
            if self.state_of(peer) is PeerState.SILENT:
                for shard in lease.numbers:
                    self._takeovers[shard] += 1
        self._must_cut = True
        return ended

    def lease_unheld(self, missing: Iterable[int]) -> list[Lease]:
        """Lease those of the missing shards that nobody holds to the present workers."""
        present = [lease for lease in self.leases.values() if not lease.duplicate]
        held = {shard for lease in present for shard in lease.numbers}
        unheld = runs_of(shard for shard in missing if shard not in held)
        leases = []
        for run in unheld:
            workers = self._least_loaded(count_of(run))
            ranges = self._ranges(run, workers)
            for worker, shards in zip(workers, ranges, strict=True):
                if shards is not None:
                    leases.append(self.lease(shards, worker.peer))
        self._must_cut |= bool(leases)
        return leases

    def _least_loaded(self, count: int) -> list[Member]:
        """Return so many workers at most, those with the fewest shards first."""
        workers = [w for w in self.workers() if not w.speed.is_too_slow] or self.workers()
        load = {w.peer: sum(len(each.numbers) for each in self.leases_of(w.peer)) for w in workers}
        return heapq.nsmallest(count, workers, key=lambda worker: load[worker.peer])

    def lease_duplicate(self, missing: AbstractSet[int], now: float) -> Lease | None:
        """Have a worker without a range compute the smallest unit, too, to measure it.

        The lease ends with the step.
        """
        for worker in self.workers():
            if worker.is_relay or not worker.speed.is_due(now) or self.leases_of(worker.peer):
                continue
            leases = self.leases.values()
            held = [each.shards for each in leases if not missing.isdisjoint(each.numbers)]
            if held:
                worker.speed.begin_measurement(now)
                lease = self.lease(min(held, key=count_of), worker.peer)
                lease.duplicate = self._must_cut = True
                return lease
        return None

    def cut_anew(self, now: float) -> tuple[list[Lease], list[Member]]:
        """Between two steps: give each worker one range, where the workers or speeds have changed.

        Return the leases that are revoked, and the workers that are found too slow for a range.
        """
        may_move = now >= self._next_move
        if not (self._must_cut or may_move):
            return [], []
        self._must_cut = False
        if may_move:
            self._next_move = now + MOVE_EVERY
        held = (each for each in reversed(self.leases.values()) if not each.duplicate)
        present = {each.peer: each.shards for each in held}  # of several leases the oldest
        workers = sorted(self.workers(), key=lambda w: present.get(w.peer, (math.inf,)))
        able = [each for each in workers if not each.speed.awaits_measurement] or workers
        ranges = self._ranges(self.scope, able)
        wanted = {w.peer: r for w, r in zip(able, ranges, strict=True) if r is not None}
        before, self._cut_for = self._cut_for, {w.peer: w.workers for w in workers}
        tried = all(w.speed.recent or not w.is_relay or w.peer not in wanted for w in workers)
        known = tried and self._cut_for.items() <= before.items()
        stays = known and self._is_whole(present)
        if stays:
            moves = may_move and _pays(workers, present, wanted)
            self.moves += moves
            wanted = wanted if moves else present
        kept, revoked = set(), []
        for lease in list(self.leases.values()):
            if wanted.get(lease.peer) == lease.shards and not lease.duplicate:
                kept.add(lease.peer)
            else:
                self.end_lease(lease)
                revoked.append(lease)
        for peer, shards in wanted.items():
            if peer not in kept:
                self.lease(shards, peer)
        return revoked, self._note_ranges(workers, wanted, now)

    def _ranges(self, shards: Range, workers: Sequence[Member]) -> list[Range | None]:
        if not workers:
            return []
        # The predicted step does not have what a relay does itself: the more, the fewer there are.
        relays = {place for place, worker in enumerate(workers) if worker.is_relay}
        return best_cut(shards, *_paces_of(workers), in_all=len(self._takeovers), needed=relays)

    def _is_whole(self, ranges: Mapping[Peer, Range]) -> bool:
        """Whether these are the ranges of all leases, and all shards."""
        leased = sum(not lease.duplicate for lease in self.leases.values())
        whole = runs_of(i for first, last in ranges.values() for i in range(first, last + 1))
        return whole == [self.scope] and leased == len(ranges)

    def _note_ranges(
        self, workers: Sequence[Member], ranges: Mapping[Peer, Range], now: float
    ) -> list[Member]:
        """Note who has a range from now on; return the workers that are found too slow for one.

        Nobody is too slow where every shard has a holder of its own: more shards would help.
        """
        held = [worker for worker in workers if worker.peer in ranges]
        cut = [ranges[worker.peer] for worker in held]
        step = expected_step(cut, *_paces_of(held)) if held else 0.0
        too_slow, spare = [], len(held) == count_of(self.scope)
        for worker in workers:
            if worker.peer in ranges:
                worker.speed.note_range()
                continue
            recent = worker.speed.recent
            slow = bool(recent) and not spare and is_too_slow(recent, step)
            if worker.speed.note_no_range(now, too_slow=slow):
                too_slow.append(worker)
        return too_slow

    def accepted(self, shards: Iterable[int], peer: Peer, lease: int, step: int) -> None:
        """Note that a unit's shards were accepted, from any peer: their counts start again."""
        held = self.leases.get(lease)
        under = lease if held is not None and held.peer == peer else 0
        for shard in shards:
            self._takeovers[shard] = 0
            self._accepted_under[shard] = step, under
        self.members[peer].renewals = 0

    def can_continue(self, lease: Lease, step: int) -> bool:
        """Whether its holder has the hidden states: it computed the step before under it."""
        first, last = lease.shards
        return {*self._accepted_under[first : last + 1]} == {(step - 1, lease.number)}

    def limit(self, member: Member) -> float:
        """Return how long this member may be silent, in seconds.

        Heartbeats come from between the pieces of a computation, so longer silence is a hang or a
        lost connection. The limit doubles with each takeover of what it holds, so that no unit can
        be too long for every worker.
        """
        if member.peer == OWN_PEER:
            return math.inf
        leases = self.leases_of(member.peer)
        takeovers = max((self._takeovers[i] for each in leases for i in each.numbers), default=0)
        least = self.silence if leases else max(self.silence, IDLE_SILENCE)
        longest = max(least, min(SLOW_FACTOR * member.longest_piece, LONGEST_UNIT))
        return float(longest * (1 + member.levels) * 2 ** min(takeovers, MAX_DOUBLINGS))


def _paces_of(workers: Sequence[Member]) -> tuple[list[list[float]], list[int]]:
    """Return how long a shard took at each lately, and how many workers compute there at once.

    Where it is not known it is the mean of those that have a range: others may be much slower, and
    with theirs a new worker would get none.
    """
    known = [worker.speed.recent for worker in workers]
    able = [worker.speed.recent for worker in workers if worker.speed.has_range]
    measured = [statistics.fmean(each) for each in filter(None, able)]
    mean = statistics.fmean(measured) if measured else 1.0
    return [of or [mean] for of in known], [worker.workers for worker in workers]


def _pays(
    workers: Sequence[Member], present: Mapping[Peer, Range], wanted: Mapping[Peer, Range]
) -> bool:
    """Whether the predicted step gets so much shorter that ranges should move."""
    paces = _paces_of(workers)
    now, then = (
        expected_step([ranges.get(w.peer) for w in workers], *paces) for ranges in (present, wanted)
    )
    return then < MOVE_GAIN * now
