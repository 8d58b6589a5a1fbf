"""Two results for one unit that are not the same bytes, or one that is not finite.

The server computes the unit's shards itself from what it holds, and bans the workers that were
wrong. Where a wrong result is part of the weights, the run resumes from a checkpoint before it. A
result that is not finite, and right, ends the run.

A relay that sent a wrong result is asked which worker computed it. It is wrong itself where its
parts were right, and where it does not know or answer.
"""

import dataclasses
import math

from manychar.numerics.tree_reduction import Range, sum_in_tree
from manychar.protocol.admission import Admission
from manychar.protocol.aggregation import Digests
from manychar.protocol.effects import Level
from manychar.protocol.events import Computed
from manychar.protocol.member import SHARE_NAME, Member
from manychar.protocol.messages import Blame, Dispute, Identities
from manychar.protocol.range_cut import count_of, numbers_of, shards_named
from manychar.protocol.server_part import ServerPart, Shared
from manychar.protocol.unit_payload import as_frame, digest, folded_digest, pack_digests


@dataclasses.dataclass
class Conflict:
    """What was claimed of a range's shards at one step, by whom, and what was computed here.

    `accepted` is the number of claims, the first ones, that were accepted. By relay that was wrong:
    until when it is `asked`, and the worker that it has `named`.
    """

    step: int
    shards: Range
    claims: list[tuple[Identities, Digests]]
    accepted: int
    finite: bool = True
    computed: dict[int, Computed] = dataclasses.field(default_factory=dict)
    asked: dict[Identities, float] = dataclasses.field(default_factory=dict)
    named: dict[Identities, Identities] = dataclasses.field(default_factory=dict)

    def is_wrong(self, claim: Digests) -> bool:
        return any(self.digest_of(each) != value for each, value in claim.items())

    def wrong(self) -> set[Identities]:
        """Return the senders of what has other digests than what was computed here."""
        return {sender for sender, claim in self.claims if self.is_wrong(claim)}

    def differing_from(self, sender: Identities) -> list[str]:
        """Return the names of the senders whose claims differ from this sender's of the same."""
        own = [claim for each, claim in self.claims if each == sender]
        return [
            name
            for (name, _), other in self.claims
            if any(a[key] != other[key] for a in own for key in a.keys() & other.keys())
        ]

    def digest_of(self, of: int | Range) -> object:
        """Return what is right of a shard or node within the range."""
        if isinstance(of, int):
            return self.computed[of].loss.hex(), digest(self.computed[of].hidden)
        gradients = [self.computed[shard].gradient for shard in numbers_of(of)]
        return folded_digest(as_frame(sum_in_tree(gradients)))


class ConflictingResults(ServerPart):
    """The open conflicts, by step and range."""

    def __init__(self, shared: Shared, admission: Admission) -> None:
        super().__init__(shared)
        self.open: dict[tuple[int, Range], Conflict] = {}
        self._admission = admission

    @property
    def not_finite(self) -> bool:
        """Whether a unit is computed again because it is not finite."""
        return any(not conflict.finite for conflict in self.open.values())

    def begin(
        self, sender: Identities, step: int, shards: Range, claims: Digests, *, finite: bool = True
    ) -> None:
        """Have this server compute a unit, of which `sender` claims these digests."""
        if (step, shards) not in self.open:
            accepted = self._aggregation.accepted(step, shards)
            self.open[step, shards] = Conflict(step, shards, accepted, len(accepted))
            for shard in numbers_of(shards):
                self._outbox.add(self._aggregation.compute_again(shard, step))
        conflict = self.open[step, shards]
        conflict.claims.append((sender, claims))
        conflict.finite &= finite

    def computed(self, own: Computed) -> None:
        for (step, shards), conflict in self.open.items():
            if step == own.step and shards[0] <= own.shard <= shards[1]:
                conflict.computed[own.shard] = own

    def blamed(self, member: Member, blame: Blame, now: float) -> None:
        """Note which worker a relay names that was asked."""
        conflict = self.open.get((blame.step, blame.shards))
        if conflict is not None and member.identities in conflict.asked:
            conflict.named[member.identities] = named_by(member, blame)

    def settled(self, now: float) -> list[Conflict]:
        """Remove and return the conflicts that can be settled."""
        computed = [c for c in self.open.values() if len(c.computed) == count_of(c.shards)]
        settled = [each for each in computed if not self._asks_relays(each, now)]
        for conflict in settled:
            del self.open[conflict.step, conflict.shards]
        return settled

    def _asks_relays(self, conflict: Conflict, now: float) -> bool:
        """Ask the relays that were wrong, again until they answer; return whether any was asked."""
        wrong, (first, last) = conflict.wrong() - conflict.named.keys(), conflict.shards
        relays = [each for each in self._membership.relays() if each.identities in wrong]
        limit = self._membership.limit
        until = [conflict.asked.setdefault(r.identities, now + limit(r)) for r in relays]
        if awaited := now < max(until, default=-math.inf):
            count = self._spec.definition.shards
            right = pack_digests(count, conflict.shards, conflict.digest_of)
            dispute = Dispute(
                **self._spec.run_and_term, step=conflict.step, first=first, last=last, digests=right
            )
            for relay in relays:
                self._outbox.send(relay.peer, dispute)
        return awaited

    def why_it_ends_the_run(self, conflict: Conflict) -> str:
        """Return the reason; nothing where the server can tell which workers were wrong."""
        what = f"step {conflict.step:,}, {shards_named(conflict.shards)}"
        own, wrong = (SHARE_NAME, SHARE_NAME), conflict.wrong()
        if own in wrong or conflict.differing_from(own):
            others = ", ".join(sorted({*conflict.differing_from(own)})) or "itself"
            return (
                f"this machine and {others} computed {what} differently, and this machine cannot"
                " tell which is right: run manychar doctor here, and verify the run"
            )
        if not conflict.finite and not wrong:
            return f"a loss, gradient or hidden state is not finite: {what}: {self._new_run}"
        return ""

    def settle(self, conflict: Conflict, now: float) -> int | None:
        """Ban the workers that were wrong.

        Return the step before which the run must resume, if the weights depend on one of them.
        """
        step, wrong = conflict.step, sorted(conflict.wrong())
        are_wrong = [conflict.is_wrong(claim) for _, claim in conflict.claims]
        why = f"it computed step {step:,}, {shards_named(conflict.shards)} wrongly"
        for sender in sorted({conflict.named.get(each, each) for each in wrong}):
            self._admission.ban(sender, why, now)
        senders = {identity for sender in wrong for identity in sender}
        at_most = step if any(are_wrong[: conflict.accepted]) else math.inf
        if math.isinf(resume := self._aggregation.first_from(senders, at_most=at_most)):
            return None
        names = ", ".join(name for name, _ in wrong)
        text = (
            f"no gradient of {names} can be trusted: resuming before step {resume:,}, the"
            " first that is remembered; manychar verify checks the steps before it"
        )
        self._outbox.log(text, Level.ERROR)
        return int(resume) + 1


def named_by(member: Member, blame: Blame) -> Identities:
    """Return the worker that a relay names: itself where it names none."""
    return (blame.name, blame.key) if blame.name else member.identities
