"""Checks every event of a simulated run against the reference, and names what was broken.

It keeps a model of its own of what the server must have accepted, and knows every byte that may
be counted, sent, granted or saved. The machines are read, never changed.

Where a broken worker's wrong result was the first of a shard or a node and counts, the term is
tainted: its bytes are not checked until the server resumes earlier.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from manychar.numerics.training_step import TrainingState
from manychar.numerics.tree_reduction import Range
from manychar.protocol.aggregation import STEPS_COMPARED
from manychar.protocol.counters import Counter
from manychar.protocol.early_stopping import MOST_WAITING
from manychar.protocol.effects import Effect, ResumeBefore, Send
from manychar.protocol.lifecycle import RunPhase
from manychar.protocol.member import PeerState
from manychar.protocol.messages import Blame, Hello, Message, Peer, Reset, Role, UnitResult
from manychar.protocol.server import ParameterServer
from manychar.protocol.unit_payload import Payload, equal_parts
from tests.simulation.lease_oracle import LeaseOracle, name_of
from tests.simulation.reference import Reference, bytes_of
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

LONGEST_SILENCE = 12.0
ASSESSED = (
    *(Counter.UNITS_REPEATED, Counter.UNITS_CONFLICTING, Counter.UNITS_NOT_COMPARED),
    *(Counter.UNITS_NOT_OPEN, Counter.UNITS_FROM_WRONG_STATE, Counter.UNITS_NOT_FINITE),
)


@dataclasses.dataclass(frozen=True)
class Before:
    """What the server's next move is checked against: its state, and what the message is to it."""

    is_of_member: bool
    assessment: Counter | None
    stranger: bool
    sender: str
    members: frozenset[Peer]
    counts: dict[str, int]


class Oracle:
    """The oracle of one world's server."""

    def __init__(self, world: "World") -> None:
        self.reference = world.reference
        self.plan = world.plan
        self.broken = world.broken
        self._world = world
        self.term = 0
        self.step = 0
        self.accepted_in_all = 0
        self.wrong: UnitResult | None = None
        self.tainted: set[int] = set()
        self.next: list[int] = []
        self.next_before: list[int] = []
        self._first = 0
        self._accepted: dict[tuple[int, int | Range], Any] = {}
        self.accepted_from: dict[int, tuple[int, Peer, int]] = {}
        self._complete: set[Range] = set()
        self._to_be_banned: set[str] = set()
        self.lease_oracle = LeaseOracle(self)
        self._spoke_at = 0.0
        self._ends_as_it_is = False

    def server_starts(self, machine: ParameterServer, saved_step: int, now: float) -> None:
        """A server begins, from the newest checkpoint that reached the disk."""
        if machine.spec.term < self.term + ("copied" not in self.plan.faults):
            raise Violation("term", f"term {machine.spec.term} after term {self.term}")
        if machine.state.step != saved_step:
            raise Violation("resume", f"from step {machine.state.step}, saved is {saved_step}")
        self.term = machine.spec.term
        self.machine = machine
        self._dimensions = machine.dimensions
        self.step = self._first = saved_step
        self.next = [saved_step] * self.plan.shards
        self.next_before = list(self.next)
        self._accepted, self.accepted_from, self._complete = {}, {}, set()
        self._to_be_banned = set()
        self.lease_oracle.server_starts()
        self.wrong = None
        self._ends_as_it_is = False
        self._spoke_at = now
        self.check_state(machine.state, "resumed state")

    def check_state(self, state: TrainingState, what: str) -> None:
        """A state is the reference's of its step, to the last bit."""
        if self.wrong is None:
            self.check_result(state, what)

    def check_result(self, state: TrainingState, what: str) -> None:
        """The same, also in a tainted term: what is handed over to the user."""
        names = ("weights", "memory", "hidden", "smooth loss")
        wanted = self.reference.state_bytes[state.step]
        for name, ours, theirs in zip(names, wanted, bytes_of(state), strict=True):
            if ours != theirs:
                raise Violation(what, f"{name} at step {state.step}")

    def before_server(self, machine: ParameterServer, peer: Peer, message: Message) -> Before:
        """Note how the server stands, and what it must make of the message."""
        member = machine.membership.members.get(peer)
        stranger = not isinstance(message, Hello) and (
            member is None or message.run_and_term != machine.spec.run_and_term  # type: ignore[union-attr]
        )
        validated = (
            isinstance(message, UnitResult)
            and self.wrong is None
            and not stranger
            and member is not None
            and member.state in (PeerState.WORKING, PeerState.SILENT)
        )
        return Before(
            is_of_member=validated,
            assessment=self._assess(machine, message) if validated else None,  # type: ignore[arg-type]
            stranger=stranger,
            sender=member.name if member else "",
            members=frozenset(machine.membership.members),
            counts=dict(machine.counts),
        )

    def _assess(self, machine: ParameterServer, result: UnitResult) -> Counter | None:
        step = result.step
        open_now = machine.lifecycle.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
        if step > self.step or (step == self.step and not open_now):
            return Counter.UNITS_NOT_OPEN
        if step < max(self.step - STEPS_COMPARED, self._first):
            return Counter.UNITS_NOT_COMPARED
        payload, reference = result.payload, self.reference
        inputs = reference.payload(step, result.first, result.last).digests
        if (
            payload.digests != inputs
            or result.weights_digest != reference.pieces[0, step].weights_digest
        ):
            return Counter.UNITS_FROM_WRONG_STATE
        parts = _parts(result, payload, reference)
        known = {of: self._accepted[step, of] for of in parts if (step, of) in self._accepted}
        if any(parts[of] != value for of, value in known.items()):
            return Counter.UNITS_CONFLICTING
        if all(shard in known for shard in _shards(result)):
            compared = any(isinstance(of, tuple) for of in known)
            return Counter.UNITS_REPEATED if compared else Counter.UNITS_NOT_COMPARED
        numbers = np.frombuffer(payload.hidden, "<f4")
        finite = np.isfinite(numbers).all() and np.isfinite(payload.losses).all()
        return None if finite else Counter.UNITS_NOT_FINITE

    def after_server(
        self,
        machine: ParameterServer,
        peer: Peer,
        message: Message,
        before: Before,
        effects: Sequence[Effect],
    ) -> None:
        """Compare what the server made of the message with what it must make of it."""
        if before.stranger:
            self._check_stranger(machine, peer, before, effects)
        self.lease_oracle.check_leases(machine)
        if self.wrong is not None or isinstance(message, Blame):  # it may end the term
            return
        self.next_before = list(self.next)
        counts = before.is_of_member and before.assessment is None
        if counts and isinstance(message, UnitResult) and not self._accept(message, peer, before):
            return
        aggregation = machine.aggregation
        step, accepted = aggregation.state.step, aggregation._open.senders
        actual = [step + (shard in accepted) for shard in range(len(self.next))]
        if actual != self.next:
            what = before.assessment or ("wanted" if counts else "no result of ours")
            raise Violation(
                "counted", f"next steps are {actual}, not {self.next}, after one that is: {what}"
            )
        self._check_counts(machine, before)
        self.check_step(machine)
        self._check_sums(machine)

    def _check_stranger(
        self, machine: ParameterServer, peer: Peer, before: Before, effects: Sequence[Effect]
    ) -> None:
        """What comes from another term, or from nobody known, is only answered."""
        match effects:
            case [Send(Reset(), to)] if to == peer:
                handled = frozenset(machine.membership.members) != before.members
            case _:
                handled = True
        if handled:
            raise Violation("another term", f"a stranger's message was handled: {effects}")

    def _accept(self, result: UnitResult, peer: Peer, before: Before) -> bool:
        """Note what counts of a result; return whether it is the reference's.

        It must be, unless a broken worker was the first.
        """
        step, reference = result.step, self.reference
        parts = _parts(result, result.payload, reference)
        nodes = [of for of in parts if isinstance(of, tuple) and not self._is_complete(of)]
        shards = [i for i in _shards(result) if (step, i) not in self._accepted]
        right = _parts(result, reference.payload(step, result.first, result.last), reference)
        new: list[int | Range] = [*nodes, *shards]
        if any(parts[of] != right[of] for of in new):
            if before.sender not in self.broken and not self._relays_wrong(before.sender):
                raise Violation("accepted result", f"{name_of(result)} differs")
            self.wrong = result
            self.tainted.add(self.term)
        self._complete.update(nodes)
        for of in new:
            self._accepted[step, of] = parts[of]
        for shard in shards:
            self.next[shard] += 1
            self.accepted_from[shard] = (step, peer, result.lease)
        self.accepted_in_all += len(shards)
        return self.wrong is None

    def _is_complete(self, node: Range) -> bool:
        """Whether a node's sum of the open step is there, or one that contains it."""
        return any(
            self._formed(above)
            for above in self.reference.sums[0]
            if above[0] <= node[0] and node[1] <= above[1]
        )

    def _formed(self, node: Range) -> bool:
        """Whether a node's sum was delivered, or can be formed of its halves."""
        if node in self._complete:
            return True
        halves = self.reference.halves(node)
        return bool(halves) and all(map(self._formed, halves))

    def check_sent(self, result: UnitResult, invariant: str) -> None:
        """A result is the reference's, to the last bit."""
        right = self.reference.result(result, result.step, result.first, result.last)
        if result.payload != right.payload or result.weights_digest != right.weights_digest:
            raise Violation(invariant, f"{name_of(result)} differs")

    def _check_sums(self, machine: ParameterServer) -> None:
        """The server holds the sums of nodes that are disjoint, of what is accepted, and right."""
        held = machine.aggregation._sums.nodes
        shards = [shard for node in held for shard in range(node[0], node[1] + 1)]
        if sorted(shards) != sorted(machine.aggregation._open.senders):
            raise Violation("sums", f"of {list(held)}")
        for node, value in held.items():
            if value.tobytes() != self.reference.sums[self.step].get(node):
                raise Violation("sums", f"of {node} at step {self.step} is another one")
        delivered = machine.aggregation._open.delivered
        if len(delivered) > 2 * self.plan.shards - 1:
            raise Violation("unbounded", f"{len(delivered)} sums of one step")

    def _check_counts(self, machine: ParameterServer, before: Before) -> None:
        for counter in ASSESSED:
            wanted = before.counts.get(counter, 0) + (counter is before.assessment)
            if machine.counts[counter] != wanted:
                what = f"{machine.counts[counter]} {counter}, not {wanted}"
                raise Violation("assessment", what)

    def check_step(self, machine: ParameterServer) -> None:
        """Every step that is complete is applied, and comes to the reference's state."""
        if self.wrong is not None or self._ends_as_it_is:
            return
        step = self.step
        while min(self.next) > step and not self._held(machine, step):
            step += 1
            if (
                machine.lifecycle.phase is not RunPhase.TRAINING
                and machine.state.step != self._world.end
            ):
                break  # it was stopped
        if machine.state.step != step:
            raise Violation("step", f"the server is at {machine.state.step}, not at {step}")
        if step != self.step:
            self.step = step
            self._complete = set()
            self.check_state(machine.state, "state")
            self.lease_oracle.check_ranges(machine)

    def server_is_stopped(self, machine: ParameterServer) -> None:
        """A server that waits for a validation loss ends as it is; another one ends its step."""
        self._ends_as_it_is |= self._held(machine, machine.state.step)

    def _held(self, machine: ParameterServer, step: int) -> bool:
        """Whether no step may be applied now: the run ends here, or waits for something.

        That is a validation loss, or a result that is not finite and is computed again.
        """
        if machine.conflicting_results.not_finite:
            return True
        every = self.plan.checkpoint_every
        due = range(0, step, every) if step % every == 0 else ()
        missing = set(due) - self._world.disk.validation_losses.keys()
        most = 0 if self.plan.patience else MOST_WAITING - 1
        return step >= self._world.end or len(missing) > most

    def owes_ban(self, before: Before) -> None:
        """Note whose result was wrong; the server computes it again to know that."""
        if before.assessment in (Counter.UNITS_CONFLICTING, Counter.UNITS_NOT_FINITE):
            relayed = self._relays_wrong(before.sender)
            self._to_be_banned |= self.broken if relayed else {before.sender}

    def _relays_wrong(self, sender: str) -> bool:
        """Whether a wrong result of this sender is one of a broken worker below it."""
        return bool(self.broken) and sender in self._world.relays

    def check_banned(self, machine: ParameterServer) -> None:
        """Who sent other bytes than the right ones is banned by name, and nobody else is."""
        banned = set(machine.admission.banned)
        if not machine.conflicting_results.open and not self._to_be_banned <= banned:
            raise Violation("banned", f"{self._to_be_banned} are not, and sent wrong results")
        names = {m.name for m in machine.membership.members.values() if m.role is Role.WORKER}
        if not banned <= self.broken or banned & names:
            raise Violation("banned", f"{banned}; broken are {self.broken}, here are {names}")

    def resumes(self, effect: ResumeBefore, banned: Mapping[str, str]) -> None:
        """The run resumes before the wrong gradient was applied, and its sender is banned.

        Another conflict may still be open: it is lost with the term.
        """
        if self.wrong is not None and effect.step > self.wrong.step + 1:
            raise Violation("resume", f"before {effect.step} for {self.wrong.step}")
        if not banned or not banned.keys() <= self.broken:
            raise Violation("banned", f"{set(banned)}; broken are {self.broken}")

    def server_spoke(self, now: float) -> None:
        """A line for a person."""
        self._spoke_at = now

    def server_ticked(self, machine: ParameterServer, applied_at: float, now: float) -> None:
        """While no step completes, somebody is told why."""
        self.check_step(machine)
        self.lease_oracle.check_leases(machine)
        self._check_best(machine)
        for member in machine.membership.workers():
            if now - member.heard_at >= machine.membership.limit(member):
                raise Violation("lost", f"{member.name} is not: silent since {member.heard_at:.1f}")
        quiet = now - max(self._spoke_at, applied_at)
        if quiet > LONGEST_SILENCE and machine.lifecycle.phase in (
            RunPhase.TRAINING,
            RunPhase.STOPPING,
        ):
            raise Violation("silence", f"the server has said nothing for {quiet:.1f} s")

    def _check_best(self, machine: ParameterServer) -> None:
        """The best checkpoint is the one with the least loss of all that are validated."""
        best, losses = machine.early_stopping.best, self._world.disk.validation_losses
        if losses and best != min(losses, key=losses.__getitem__):
            raise Violation("best", f"step {best} of {losses}")


def _shards(result: UnitResult) -> range:
    return range(result.first, result.last + 1)


def _parts(result: UnitResult, payload: Payload, reference: Reference) -> dict[Any, Any]:
    """Return what can be compared: loss and hidden state by shard, the sum by node."""
    hidden = map(bytes, equal_parts(payload.hidden, len(payload.losses)))
    shards = dict(
        zip(_shards(result), zip(map(float.hex, payload.losses), hidden, strict=True), strict=True)
    )
    nodes = zip(reference.cover(result.first, result.last), map(bytes, payload.sums), strict=True)
    return shards | dict(nodes)
