"""Grants: what a worker needs to compute, when it is sent again, and which workers are late."""

from collections.abc import Set as AbstractSet

from manychar.protocol.codec import complete
from manychar.protocol.counters import Counter
from manychar.protocol.member import Member
from manychar.protocol.membership import Lease
from manychar.protocol.messages import Grant, Revoke
from manychar.protocol.next_units import NextUnits
from manychar.protocol.range_cut import runs_of
from manychar.protocol.server_part import ServerPart, Shared
from manychar.protocol.unit_payload import as_frame


class LeaseGrants(ServerPart):
    """Grants ranges of shards to workers, and grants each again until its results are accepted."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.next_units = NextUnits(shared)

    def joined(self, now: float) -> None:
        """Lease the shards that nobody holds; a new worker gets its range after the step."""
        self._membership.workers_changed()
        if not self._membership.leases:  # else other workers hold all that is missing
            self.lease_unheld(now)

    def lost(self, member: Member, now: float) -> None:
        """Take the leases of a worker that is gone or silent, and lease their shards to others."""
        if ended := self._membership.end_leases(member.peer):
            self._revoke(ended)
            self.lease_unheld(now)

    def lease_unheld(self, now: float) -> None:
        idle = {each.peer for each in self._membership.workers()} - self._membership.holders()
        for lease in self._membership.lease_unheld(self._aggregation.missing()):
            if lease.peer in idle:
                self._membership.members[lease.peer].tally.waits_until(now)
            self.grant(lease, now)

    def _revoke(self, leases: list[Lease]) -> None:
        for lease in leases:
            if lease.peer in self._membership.members:
                revoke = Revoke(**self._spec.run_and_term, lease=lease.number)
                self._outbox.send(lease.peer, revoke)

    def keep_only(self, shards: AbstractSet[int]) -> None:
        """Revoke the leases without any of these shards: a relay is not asked for theirs."""
        leases = self._membership.leases.values()
        ended = [each for each in leases if shards.isdisjoint(each.numbers)]
        for lease in ended:
            self._membership.end_lease(lease)
            self._membership.workers_changed()
        self._revoke(ended)

    def renew(self, old: Lease, now: float) -> None:
        """Give the holder a new lease on its range: what it has of the old one is void."""
        self._membership.end_lease(old)
        new = self._membership.lease(old.shards, old.peer)
        new.duplicate = old.duplicate
        self.grant(new, now)

    def grant(self, lease: Lease, now: float) -> None:
        """Grant what is missing of the lease's range: a grant for each contiguous part."""
        if lease.asked_step < 0 and len(self._membership.leases_of(lease.peer)) == 1:
            self._membership.members[lease.peer].heard_at = now  # until now heartbeats were rare
        lease.ask(self._step, now)
        aggregation = self._aggregation
        for first, last in runs_of(filter(aggregation.is_missing, lease.numbers)):
            number = self._count_asked(lease)
            grant = Grant(
                **self.next_units.fields(lease, (first, last), self._step, number),
                weights=aggregation.weights,
                lease_first=lease.shards[0],
                lease_last=lease.shards[1],
                hidden=as_frame(aggregation.state.hidden[first : last + 1]),
            )
            self._outbox.send(lease.peer, grant)

    def broadcast(self, now: float) -> None:
        """Send the new weights, with the unit that they open, to each holder of a range.

        A holder that computed all of its range at the step before has the hidden states.
        """
        moves = self._membership.moves
        revoked, too_slow = self._membership.cut_anew(now)
        if self._membership.moves > moves:
            self._outbox.count(Counter.RANGES_MOVED)
        self._revoke(revoked)
        for member in too_slow:
            shard = member.speed.seconds_a_shard or 0.0
            text = f"takes {shard:.3g} s for a shard: it gets none, a step without it is shorter"
            self._outbox.log(f"{member.name} {text}")
        for lease in self._membership.leases.values():
            self._membership.members[lease.peer].tally.waits_until(now)
            if not self._membership.can_continue(lease, self._step):
                self.grant(lease, now)
                continue
            lease.ask(self._step, now)
            unit = self.next_units.of(lease, self._count_asked(lease))
            self._outbox.send(lease.peer, complete(unit, weights=self._aggregation.weights))

    def _count_asked(self, lease: Lease) -> int:
        """Return the number of the next message that asks the lease's holder for a unit."""
        member = self._membership.members[lease.peer]
        member.asked += 1
        lease.asked_number = member.asked
        return member.asked

    def heard(self, member: Member, number: int, now: float) -> None:
        """Grant again each unit that a worker was asked for, does not list and has not delivered.

        It was asked up to this number. A unit comes before the heartbeat: it is lost.
        """
        for lease in self._membership.leases_of(member.peer):
            is_missing = any(map(self._aggregation.is_missing, lease.numbers))
            asked = lease.asked_step == self._step and lease.asked_number <= number
            if is_missing and asked and not member.has_unit(lease.number, self._step):
                self._grant_again(lease, now)

    def _grant_again(self, lease: Lease, now: float) -> None:
        self._outbox.count(Counter.GRANTS_RESENT)
        self.grant(lease, now)

    def ask_again(self, now: float) -> None:
        """Grant again what is overdue, unless its worker reports computing it.

        A worker without a range is measured again by a duplicate.
        """
        duplicate = self._membership.lease_duplicate({*self._aggregation.missing()}, now)
        if duplicate is not None:
            self._membership.members[duplicate.peer].tally.waits_until(now)
            self.grant(duplicate, now)
        for lease in list(self._membership.leases.values()):
            if not any(map(self._aggregation.is_missing, lease.numbers)):
                continue
            if now < lease.asked_at + lease.resend_after:
                continue
            holder = self._membership.members[lease.peer]
            if holder.units_at >= lease.asked_at and holder.is_busy(lease.number, self._step):
                lease.asked_at = now
            else:
                self._grant_again(lease, now)
