"""What a worker holds: under each lease its step's units, and the one that it computes."""

import dataclasses
from typing import TYPE_CHECKING

from manychar.numerics.tree_reduction import Range, TreeSum
from manychar.protocol import events
from manychar.protocol.effects import Compute
from manychar.protocol.messages import Frame, RunAndTerm, UnitResult, Welcome, unit_fields
from manychar.protocol.range_cut import numbers_of
from manychar.protocol.unit_payload import Payload, as_frame, digest, sparse_form

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


@dataclasses.dataclass
class HeldLease:
    """What the worker holds under one lease, for its step: by shard, or by unit.

    `queued` has the ids that the shards of a unit read.
    """

    number: int
    shards: Range
    hidden: dict[int, Frame] = dataclasses.field(default_factory=dict)
    next_hidden: dict[int, Frame] = dataclasses.field(default_factory=dict)
    queued: dict[Range, list[Frame]] = dataclasses.field(default_factory=dict)
    finished: dict[Range, UnitResult] = dataclasses.field(default_factory=dict)

    def advance(self, *, by: int) -> None:
        """Go to a later step: finished units leave their hidden states to the step after them."""
        self.hidden = self.next_hidden if by == 1 else {}
        self.next_hidden, self.queued, self.finished = {}, {}, {}

    def finish(self, shards: Range, result: UnitResult, next_hidden: list[Frame]) -> None:
        """Keep a unit until it is acknowledged, in the place of others of the same shards."""
        for first, last in list(self.finished):
            if first <= shards[1] and shards[0] <= last:
                del self.finished[first, last]
        self.finished[shards] = result
        self.next_hidden |= zip(numbers_of(shards), next_hidden, strict=True)


@dataclasses.dataclass
class UnitInHand:
    """The unit that is being computed: its inputs, and what its finished shards gave."""

    run_and_term: RunAndTerm
    lease: int
    shards: Range
    step: int
    weights: Frame
    fresh: bool
    ids: list[Frame]
    hidden: list[Frame]
    sums: "TreeSum[NDArray[Any]]"
    losses: list[float] = dataclasses.field(default_factory=list)
    next_hidden: list[Frame] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def next_shard(self) -> int:
        return self.shards[0] + len(self.losses)

    def compute_next(self) -> Compute:
        done = len(self.losses)
        return Compute(
            shard=self.next_shard,
            step=self.step,
            fresh=self.fresh,
            weights=self.weights,
            hidden=self.hidden[done],
            ids=self.ids[done],
        )

    def add(self, shard: events.Computed) -> None:
        self.sums.put((shard.shard, shard.shard), shard.gradient)
        self.losses.append(shard.loss)
        self.next_hidden.append(shard.hidden)
        self.seconds += shard.seconds

    def result(self, weights_digest: bytes, welcome: Welcome) -> UnitResult:
        unit = unit_fields(self.run_and_term, lease=self.lease, shards=self.shards, step=self.step)
        return UnitResult(
            **unit,
            weights_digest=weights_digest,
            seconds=self.seconds / len(self.losses),
            payload=Payload(
                sums=tuple(as_frame(each) for each in self.sums.sums()),
                hidden=b"".join(self.next_hidden),
                losses=tuple(self.losses),
                digests=b"".join(digest(each) for each in self.hidden),
                sparse=sparse_form(welcome.dimensions),
            ),
        )
