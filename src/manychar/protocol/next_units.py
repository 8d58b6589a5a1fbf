"""What a step needs besides its weights, made while the workers compute the step before.

A broadcast then sends to each holder of a range a frame that is here, and the weights; the header
of a result is compared with the one that is expected.
"""

from typing import Any

from manychar.numerics.tree_reduction import Range
from manychar.protocol.codec import expect, prepare
from manychar.protocol.membership import Lease
from manychar.protocol.messages import NewWeights, UnitResult, unit_fields
from manychar.protocol.packed_header import Expected
from manychar.protocol.server_part import ServerPart, Shared


class NextUnits(ServerPart):
    """The next unit of each lease; `expected` are the results of the units that are computed."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.expected: Expected = {}
        self._units: dict[int, NewWeights] = {}  # by lease, without the weights
        self._made_at = -1

    def make(self) -> None:
        """Make what follows from the open step: once, and for the leases that there are."""
        step, aggregation = self._step, self._aggregation
        if self._made_at == step or aggregation.closed:
            return
        self._made_at = step
        leases, digest = self._membership.leases.values(), aggregation.weights_digest
        self.expected = dict(
            expect(UnitResult, {**self._unit(each, each.shards, step), "weights_digest": digest})
            for each in leases
        )
        if aggregation.knows_next_ids:
            members = self._membership.members
            self._units = {
                each.number: self._make(each, step + 1, members[each.peer].asked + 1)
                for each in leases
            }

    def of(self, lease: Lease, number: int) -> NewWeights:
        """Return the unit of the open step, with this number, for the holder of the lease.

        It is made now where the holder was asked for another unit since the next ones were made.
        """
        unit = self._units.get(lease.number)
        if unit is not None and (unit.step, unit.number) == (self._step, number):
            return unit
        return self._make(lease, self._step, number)

    def _make(self, lease: Lease, step: int, number: int) -> NewWeights:
        return prepare(NewWeights, self.fields(lease, lease.shards, step, number))

    def fields(self, lease: Lease, shards: Range, step: int, number: int) -> dict[str, Any]:
        """Return the fields that NewWeights and Grant share, but for the weights."""
        return {
            **self._unit(lease, shards, step),
            "number": number,
            "fresh": self._aggregation.is_fresh_at(step),
            "ids": self._aggregation.ids(*shards, step),
        }

    def _unit(self, lease: Lease, shards: Range, step: int) -> dict[str, Any]:
        return unit_fields(self._spec.run_and_term, lease=lease.number, shards=shards, step=step)
