"""LateWorkers: what the last workers of a step are late with, idle ones compute, too.

The first result counts. A worker is late, where few have not delivered, after

    LATE times as long as usual   if it was measured
    no time                       if it was late with the step before, too: it stands still
    LATEST times as long          if it was not measured, or was late for MEASURED_EVERY; how long
                                  it took at least is its speed then

So one that stands still for a moment costs one short wait; one that has become slow is measured
again and gets less, and one that hangs gets nothing, long before its silence ends its leases.
"""

import math

from manychar.protocol.member import Member
from manychar.protocol.membership import Lease
from manychar.protocol.server_part import ServerPart, Shared

LATE, LATEST = 1.5, 10.0
LEAST_LATE, LEAST_LATEST = 0.01, 1.0  # seconds, for steps that take less
MEASURED_EVERY = 3.0
FEW = 10  # one in so many: where more are late, a network may be slow, and messages make it slower


class LateWorkers(ServerPart):
    """Which holders are late with the open step; `due` is when to look again."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.due = math.inf
        self._began_at = self._took = 0.0
        self._delivered = 0
        self._is_any_known = False  # that was late with the step before

    def begin(self, now: float) -> None:
        """Note that a step begins."""
        self._began_at, self._delivered, self.due = now, 0, math.inf
        self._is_any_known = False

    def note(self, holder: Member, now: float, *, delivered: bool) -> None:
        """Note whether a holder delivered its unit of the step before."""
        is_late = not (delivered or holder.is_relay)  # a relay sees to its own workers
        holder.late_since = min(holder.late_since, now) if is_late else math.inf
        if now >= holder.late_since + MEASURED_EVERY:
            holder.late_since = math.inf
            holder.speed.forget()
        self._is_any_known |= holder.late_since < math.inf

    def accepted(self, now: float) -> None:
        """Note that a unit was accepted: when few are left, they are soon late."""
        self._delivered += 1
        self._took = now - self._began_at
        count = len(self._membership.leases)
        if count - self._delivered <= max(1, count // FEW):
            usual = self._began_at + max(LEAST_LATE, LATE * self._took)
            self.due = now if self._is_any_known else usual

    def duplicates(self, now: float) -> list[Lease]:
        """Lease to idle workers what others are late with; a lease ends with the step."""
        if now < self.due:
            return []
        self.due = math.inf
        missing, leases = {*self._aggregation.missing()}, self._membership.leases
        still_open = [each for each in leases.values() if not missing.isdisjoint(each.numbers)]
        held = [each for each in still_open if not each.duplicate]
        if len(held) > max(1, len(leases) // FEW):
            return []
        again = {each.shards for each in still_open if each.duplicate}
        duplicates = []
        for lease in held:
            holder = self._membership.members[lease.peer]
            if holder.is_relay or lease.shards in again:
                continue
            if now < (late_from := self._late_from(lease, holder)):
                self.due = min(self.due, late_from)
            elif (duplicate := self._membership.lease_late(lease, missing)) is not None:
                duplicates.append(duplicate)
                if not holder.speed.units:
                    holder.speed.note((now - lease.asked_at) / len(lease.numbers))
        return duplicates

    def _late_from(self, lease: Lease, holder: Member) -> float:
        if holder.late_since < math.inf:
            return lease.asked_at
        if (seconds := holder.speed.seconds_a_shard) is None:
            return lease.asked_at + max(LEAST_LATEST, LATEST * self._took)
        usual = max(self._took, seconds * len(lease.numbers))
        return lease.asked_at + max(LEAST_LATE, LATE * usual)
