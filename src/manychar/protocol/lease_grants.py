"""Grants: what a worker needs to compute, when it is sent again, and which workers are late."""

from manychar.protocol.aggregation import as_frame
from manychar.protocol.counters import Counter
from manychar.protocol.membership import Lease
from manychar.protocol.messages import Grant, Peer, Revoke, Unit, Weights
from manychar.protocol.server_part import ServerPart


class LeaseGrants(ServerPart):
    """Grants shards to workers, and grants each again until its gradient is accepted."""

    def rebalance(self, now: float) -> None:
        """Spread the shards over the present workers, and grant the shards that have moved."""
        busy = self._membership.holders()
        revoked, given = self._membership.rebalance()
        for peer in {lease.peer for lease in given} - busy:
            self._membership.members[peer].tally.waits_until(now)
        for lease in revoked:
            if lease.peer in self._membership.members:
                revoke = Revoke(**self._spec.run_and_term, lease=lease.number)
                self._outbox.send(lease.peer, revoke)
        for lease in given:
            self.grant(lease, now)

    def renew(self, shard: int, now: float) -> None:
        """Give the holder a new lease on its shard: what it has of the old one is void."""
        old = self._membership.leases[shard]
        new = self._membership.lease(shard, old.peer)
        new.renewed = old.renewed + 1
        self.grant(new, now)

    def grant(self, lease: Lease, now: float) -> None:
        if not self._aggregation.is_missing(lease.shard):
            return
        lease.begun = True
        lease.ask(self._step, now)
        batch = self._aggregation.batch(lease.shard)
        grant = Grant(
            **self._spec.run_and_term,
            lease=lease.number,
            shard=lease.shard,
            step=self._step,
            fresh=batch.fresh,
            weights=self._aggregation.weights,
            hidden=self._aggregation.hidden(lease.shard),
            ids=as_frame(batch.ids),
        )
        self._outbox.send(lease.peer, grant)

    def broadcast(self, now: float) -> None:
        """Send new weights with the step they open, and begin leases that could not begin."""
        for peer in self._membership.holders():
            self._membership.members[peer].tally.waits_until(now)
        begun: dict[Peer, list[Lease]] = {}
        for lease in self._membership.leases.values():
            if lease.begun:
                begun.setdefault(lease.peer, []).append(lease)
            else:
                self.grant(lease, now)
        for peer, leases in begun.items():
            batches = [self._aggregation.batch(lease.shard) for lease in leases]
            units = [
                Unit(lease.number, lease.shard, self._step, batch.fresh)
                for lease, batch in zip(leases, batches, strict=True)
            ]
            weights = Weights(
                **self._spec.run_and_term,
                version=self._step,
                weights=self._aggregation.weights,
                units=tuple(units),
                ids=tuple(as_frame(batch.ids) for batch in batches),
            )
            self._outbox.send(peer, weights)

    def ask_again(self, now: float) -> None:
        """Grant a shard again whose gradient is overdue, unless its worker reports computing it."""
        for lease in list(self._membership.leases.values()):
            if not self._aggregation.is_missing(lease.shard):
                continue
            if lease.asked_step != self._step:
                lease.ask(self._step, now)
            if now < lease.asked_at + lease.resend_after:
                continue
            holder = self._membership.members[lease.peer]
            if holder.units_at >= lease.asked_at and holder.is_busy(lease.number, self._step):
                lease.asked_at = now
            else:
                self._outbox.count(Counter.GRANTS_RESENT)
                self.grant(lease, now)
