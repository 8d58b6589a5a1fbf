"""Two results for one unit that are not the same bytes: one of them was computed wrongly.

The server computes the unit itself from what it holds, and bans the worker that was wrong. Where
that worker's result is part of the weights, the run resumes from a checkpoint before it.
"""

import math

from manychar.protocol.admission import Admission
from manychar.protocol.aggregation import ResultDigest, digest_of
from manychar.protocol.events import Computed
from manychar.protocol.membership import Member
from manychar.protocol.messages import Gradient, Identities, Level
from manychar.protocol.server_part import ServerPart, Shared


class ConflictingResults(ServerPart):
    """The open conflicts: the senders and digests of each (shard, step), the accepted one first."""

    def __init__(self, shared: Shared, admission: Admission) -> None:
        super().__init__(shared)
        self.open: dict[tuple[int, int], list[tuple[Identities, ResultDigest]]] = {}
        self._admission = admission

    def begin(self, member: Member, gradient: Gradient) -> None:
        """Have this server compute the unit on which two results differ."""
        shard, step = gradient.shard, gradient.step
        sender, accepted = self._aggregation.accepted(shard, step)
        self._outbox.warn(
            f"{member.name} sent other bytes for step {step}, shard {shard} than {sender[0]} did"
        )
        if (shard, step) not in self.open:
            self.open[shard, step] = [(sender, accepted)]
            self._outbox.add(self._aggregation.compute_again(shard, step))
        self.open[shard, step].append((member.identities, digest_of(gradient)))

    def settle(self, own: Computed, now: float) -> int | None:
        """Ban the workers that were wrong.

        Return the step before which the run must resume, if the weights depend on one of them.
        """
        shard, step = own.shard, own.step
        (_, accepted), *_ = results = self.open.pop((shard, step))
        right = digest_of(own)
        wrong = sorted({sender for sender, digest in results if digest != right})
        for sender in wrong:
            self._admission.ban(sender, f"it computed step {step}, shard {shard} wrongly", now)
        senders = {identity for sender in wrong for identity in sender}
        at_most = math.inf if accepted == right else step
        if math.isinf(first := self._aggregation.first_from(senders, at_most=at_most)):
            return None
        names = ", ".join(name for name, _ in wrong)
        text = (
            f"no gradient of {names} can be trusted: resuming before step {first}, the"
            " first that is remembered; manychar verify checks the steps before it"
        )
        self._outbox.notice(text, Level.ERROR)
        return int(first) + 1
