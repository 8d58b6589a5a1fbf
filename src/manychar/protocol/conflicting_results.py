"""Two results for one unit that are not the same bytes: somebody's arithmetic is broken.

The server computes the unit itself from what it holds, and bans the worker that was wrong. Where
that worker's result is part of the weights, the run resumes from a checkpoint before it.
"""

import math

from manychar.protocol.admission import Admission
from manychar.protocol.aggregation import Aggregation, Digest, digest_of
from manychar.protocol.effects import Result, ResumeBefore
from manychar.protocol.membership import Member
from manychar.protocol.messages import Gradient, Level, Names
from manychar.protocol.outbox import Outbox


class ConflictingResults:
    """The open conflicts: the senders and digests of each (shard, step), the accepted one first."""

    def __init__(self, aggregation: Aggregation, admission: Admission, outbox: Outbox) -> None:
        self.open: dict[tuple[int, int], list[tuple[Names, Digest]]] = {}
        self._aggregation = aggregation
        self._admission = admission
        self._outbox = outbox

    def begin(self, member: Member, gradient: Gradient) -> None:
        """Have this server compute what two results differ on."""
        shard, step = gradient.shard, gradient.step
        accepted = self._aggregation.accepted(shard, step)
        self._outbox.warn(
            f"{member.name} sent other bytes for step {step}, shard {shard}"
            f" than {accepted.sender[0]} did"
        )
        if self._admission.mixed:
            return  # other arithmetic was let in: nobody is to blame
        if (shard, step) not in self.open:
            self.open[shard, step] = [(accepted.sender, accepted.digest)]
            self._outbox.add(self._aggregation.unit(shard, step))
        self.open[shard, step].append((member.names, digest_of(gradient)))

    def settle(self, shard: int, step: int, result: Result, now: float) -> ResumeBefore | None:
        """Ban the workers that were wrong; return where to resume if the weights depend on them."""
        (_, accepted), *_ = said = self.open.pop((shard, step))
        truth = digest_of(result)
        wrong = sorted({names for names, digest in said if digest != truth})
        for names in wrong:
            self._admission.ban(names, f"it computed step {step}, shard {shard} wrongly", now)
        called = {name for names in wrong for name in names}
        at_most = math.inf if accepted == truth else step
        if math.isinf(first := self._aggregation.first_from(called, at_most=at_most)):
            return None
        who = ", ".join(name for name, _ in wrong)
        text = (
            f"no gradient of {who} can be trusted: resuming before step {first}, the first"
            " that is remembered; manychar verify tells of those before it"
        )
        self._outbox.notice(text, Level.ERROR)
        return ResumeBefore(int(first) + 1, dict(self._admission.banned))
