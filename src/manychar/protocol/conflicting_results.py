"""Two results for one unit that are not the same bytes, or one that is not finite.

The server computes the unit's shards itself from what it holds, and bans the workers that were
wrong. Where a wrong result is part of the weights, the run resumes from a checkpoint before it. A
result that is not finite, and right, ends the run.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from manychar.numerics.tree_reduction import Range, children
from manychar.protocol.admission import Admission
from manychar.protocol.aggregation import Digests
from manychar.protocol.events import Computed
from manychar.protocol.membership import Member
from manychar.protocol.messages import Identities, Level, UnitResult
from manychar.protocol.range_cut import shards_named
from manychar.protocol.server_part import ServerPart, Shared
from manychar.protocol.unit_payload import Payload, as_frame, digest


@dataclasses.dataclass
class Conflict:
    """What was claimed of a range's shards at one step, by whom, and what was computed here.

    `accepted` is the number of claims, the first ones, that were accepted.
    """

    step: int
    shards: Range
    claims: list[tuple[Identities, Digests]]
    accepted: int
    finite: bool = True
    found_wrong: bool = False
    computed: dict[int, Computed] = dataclasses.field(default_factory=dict)

    @property
    def is_computed(self) -> bool:
        return len(self.computed) == self.shards[1] - self.shards[0] + 1

    def is_wrong(self, claim: Digests) -> bool:
        """Whether what was computed here has other digests."""
        return any(self._digest_of(each) != value for each, value in claim.items())

    def _digest_of(self, of: int | Range) -> object:
        if isinstance(of, int):
            return self.computed[of].loss.hex(), digest(self.computed[of].hidden)
        return digest(as_frame(_sum(self.computed, of)))


def _sum(computed: Mapping[int, Computed], node: Range) -> NDArray[Any]:
    if node[0] == node[1]:
        return computed[node[0]].gradient
    left, right = children(node)
    total: NDArray[Any] = _sum(computed, left) + _sum(computed, right)
    return total


class ConflictingResults(ServerPart):
    """The open conflicts, by step and range."""

    def __init__(self, shared: Shared, admission: Admission) -> None:
        super().__init__(shared)
        self.open: dict[tuple[int, Range], Conflict] = {}
        self._admission = admission

    def parties(self, member: Member, result: UnitResult, payload: Payload) -> set[str]:
        """Return the names of the workers whose results differ: a member's and accepted ones."""
        here = self._aggregation.digests_of(result, payload)
        accepted = self._aggregation.accepted(result.step, result.first, result.last)
        differ = [
            name
            for (name, _), claim in accepted
            if any(here.get(of, value) != value for of, value in claim.items())
        ]
        return {member.name, *differ}

    @property
    def not_finite(self) -> bool:
        """Whether a unit is computed again because it is not finite."""
        return any(not conflict.finite for conflict in self.open.values())

    def begin(
        self, sender: Identities, step: int, shards: Range, claims: Digests, *, finite: bool = True
    ) -> None:
        """Have this server compute a unit, of which `sender` claims these digests."""
        if (step, shards) not in self.open:
            accepted = self._aggregation.accepted(step, *shards)
            self.open[step, shards] = Conflict(step, shards, accepted, len(accepted))
            for shard in range(shards[0], shards[1] + 1):
                self._outbox.add(self._aggregation.compute_again(shard, step))
        conflict = self.open[step, shards]
        conflict.claims.append((sender, claims))
        conflict.finite &= finite

    def computed(self, own: Computed) -> list[Conflict]:
        """Note what was computed here; remove and return the conflicts that can be settled."""
        for (step, shards), conflict in self.open.items():
            if step == own.step and shards[0] <= own.shard <= shards[1]:
                conflict.computed[own.shard] = own
        settled = [each for each in self.open.values() if each.is_computed]
        for conflict in settled:
            del self.open[conflict.step, conflict.shards]
        return settled

    def settle(self, conflict: Conflict, now: float) -> int | None:
        """Ban the workers that were wrong.

        Return the step before which the run must resume, if the weights depend on one of them.
        """
        step, (first, last) = conflict.step, conflict.shards
        are_wrong = [conflict.is_wrong(claim) for _, claim in conflict.claims]
        wrong = sorted(
            {who for (who, _), bad in zip(conflict.claims, are_wrong, strict=True) if bad}
        )
        for sender in wrong:
            self._admission.ban(
                sender, f"it computed step {step}, {shards_named(first, last)} wrongly", now
            )
        conflict.found_wrong = bool(wrong)
        senders = {identity for sender in wrong for identity in sender}
        at_most = step if any(are_wrong[: conflict.accepted]) else math.inf
        if math.isinf(resume := self._aggregation.first_from(senders, at_most=at_most)):
            return None
        names = ", ".join(name for name, _ in wrong)
        text = (
            f"no gradient of {names} can be trusted: resuming before step {resume}, the"
            " first that is remembered; manychar verify checks the steps before it"
        )
        self._outbox.notice(text, Level.ERROR)
        return int(resume) + 1
