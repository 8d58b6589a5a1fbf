"""How each worker spends its time: computing, waiting with nothing to do, or exchanging.

A worker says itself how long it has computed. It waits from the moment its last gradient is taken
until the weights of a step that it can compute go out; what is left of its time went into the
exchange: bytes on their way, and both sides' handling of them.
"""

from manychar.protocol.aggregation import Aggregation
from manychar.protocol.membership import Member, Membership, PeerState
from manychar.protocol.messages import ROSTER_LENGTH, Peer, Roster, WorkerStats, one_line
from manychar.protocol.outbox import Outbox
from manychar.protocol.stall_report import StallReport

ROSTER_EVERY = 1.0


class WorkerStatistics:
    """Keeps every worker's tally, and shows all of them now and then."""

    def __init__(
        self,
        steps: Aggregation,
        membership: Membership,
        waiting: StallReport,
        outbox: Outbox,
        *,
        now: float,
    ) -> None:
        self._steps = steps
        self._membership = membership
        self._waiting = waiting
        self._outbox = outbox
        self._next_at = now

    def delivers(self, member: Member, now: float) -> None:
        """Note a gradient that counts."""
        member.tally.counted += 1
        member.tally.delivered_at = now

    def broadcasts(self, now: float) -> None:
        """Note, before new weights go out, who has waited for them since its last gradient."""
        for peer in {lease.peer for lease in self._membership.leases.values()}:
            self._membership.members[peer].tally.waits_until(now)

    def tick(self, now: float) -> None:
        """Show everyone's to the observers if it is time."""
        if now >= self._next_at and self._membership.observers():
            self._next_at = now + ROSTER_EVERY
            self.tell(now)

    def tell(self, now: float) -> None:
        """Show everyone's to the observers."""
        for roster in self.rosters(now):
            self._outbox.tell(roster)

    def rosters(self, now: float) -> list[Roster]:
        """Return everyone's attendance, in as many messages as it takes."""
        workers = self._membership.workers()
        here = {member.name for member in workers}
        workers += [
            member
            for member in self._membership.members.values()
            if member.state is PeerState.SILENT and member.name not in here
        ]
        workers.sort(key=lambda member: member.joined)
        shards: dict[Peer, list[int]] = {member.peer: [] for member in workers}
        for shard, lease in self._membership.leases.items():
            shards[lease.peer].append(shard)
        entries = [self._entry(m, shards[m.peer], now) for m in workers]
        waiting = one_line(self._waiting.whom(now))
        return [
            Roster(
                run=self._outbox.run,
                term=self._outbox.term,
                first=first,
                total=len(entries),
                waiting=waiting,
                workers=tuple(entries[first : first + ROSTER_LENGTH]),
            )
            for first in range(0, max(len(entries), 1), ROSTER_LENGTH)
        ]

    def _entry(self, member: Member, shards: list[int], now: float) -> WorkerStats:
        tally = member.tally
        awaited = any(map(self._steps.is_missing, shards))
        state = "silent" if member.state is PeerState.SILENT else "working" if shards else "standby"
        return WorkerStats(
            name=member.name,
            host=member.host,
            state=state,
            leases=len(shards),
            units=tally.counted,
            dropped=tally.dropped,
            present=now - tally.since,
            computing=tally.computing_by(now),
            waiting=tally.waited + (0.0 if awaited else now - tally.delivered_at),
            late=now - self._waiting.since if awaited else 0.0,
        )
