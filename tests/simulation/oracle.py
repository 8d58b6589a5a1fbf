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
from manychar.protocol.aggregation import STEPS_COMPARED, Assessment
from manychar.protocol.early_stopping import MOST_WAITING
from manychar.protocol.effects import Effect, ResumeBefore, Send
from manychar.protocol.lifecycle import RunPhase
from manychar.protocol.membership import PeerState, runs_of
from manychar.protocol.messages import (
    Grant,
    Hello,
    Message,
    NewWeights,
    Peer,
    Reset,
    Role,
    UnitResult,
)
from manychar.protocol.server import ParameterServer
from manychar.protocol.unit_payload import Payload
from tests.simulation.reference import Reference, bytes_of
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

LONGEST_SILENCE = 12.0


@dataclasses.dataclass(frozen=True)
class Before:
    """What the server's next move is checked against: its state, and what the message is to it."""

    assessment: Assessment | None
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
        self._next: list[int] = []
        self._next_before: list[int] = []
        self._first = 0
        self._accepted: dict[tuple[int, int | Range], Any] = {}
        self._accepted_from: dict[int, tuple[int, Peer, int]] = {}
        self._complete: set[Range] = set()
        self._leases: dict[int, tuple[Range, Peer]] = {}
        self._live: dict[int, int] = {}
        self._spoke_at = 0.0
        self._ends_as_it_is = False

    def server_starts(self, machine: ParameterServer, saved_step: int, now: float) -> None:
        """A server begins, from the newest checkpoint that reached the disk."""
        if machine.spec.term < self.term + ("copied" not in self.plan.faults):
            raise Violation("term", f"term {machine.spec.term} after term {self.term}")
        if machine.state.step != saved_step:
            raise Violation("resume", f"from step {machine.state.step}, saved is {saved_step}")
        self.term = machine.spec.term
        self._dimensions = machine.dimensions
        self.step = self._first = saved_step
        self._next = [saved_step] * self.plan.shards
        self._next_before = list(self._next)
        self._accepted, self._accepted_from, self._complete = {}, {}, set()
        self._leases, self._live = {}, {}
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
            assessment=self._assess(machine, message) if validated else None,  # type: ignore[arg-type]
            stranger=stranger,
            sender=member.name if member else "",
            members=frozenset(machine.membership.members),
            counts=dict(machine.counts),
        )

    def _assess(self, machine: ParameterServer, result: UnitResult) -> Assessment:
        step = result.step
        open_now = machine.lifecycle.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
        if step > self.step or (step == self.step and not open_now):
            return Assessment.NOT_OPEN
        if step < max(self.step - STEPS_COMPARED, self._first):
            return Assessment.REPEAT_TOO_OLD
        payload = Payload.of(result, self._dimensions)
        reference = self.reference
        inputs = reference.payload(step, result.first, result.last).digests
        if (
            list(payload.digests) != inputs
            or result.weights_digest != reference.pieces[0, step].weights_digest
        ):
            return Assessment.FROM_ANOTHER_STATE
        parts = _parts(result, payload, reference)
        known = {of: self._accepted[step, of] for of in parts if (step, of) in self._accepted}
        if any(parts[of] != value for of, value in known.items()):
            return Assessment.REPEAT_DIFFERS
        if all(shard in known for shard in _shards(result)):
            compared = any(isinstance(of, tuple) for of in known)
            return Assessment.REPEAT if compared else Assessment.REPEAT_TOO_OLD
        numbers = np.frombuffer(b"".join(payload.hidden), "<f4")
        finite = np.isfinite(numbers).all() and np.isfinite(payload.losses).all()
        return Assessment.WANTED if finite else Assessment.NOT_FINITE

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
        self._check_leases(machine)
        if self.wrong is not None:
            return
        self._next_before = list(self._next)
        if before.assessment is Assessment.WANTED and isinstance(message, UnitResult):
            self._accept(message, peer, before)
            if self.wrong is not None:
                return
        aggregation = machine.aggregation
        step, accepted = aggregation.state.step, aggregation._open.senders
        actual = [step + (shard in accepted) for shard in range(len(self._next))]
        if actual != self._next:
            what = before.assessment.value if before.assessment else "no result of ours"
            raise Violation(
                "counted", f"next steps are {actual}, not {self._next}, after one that is: {what}"
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

    def _accept(self, result: UnitResult, peer: Peer, before: Before) -> None:
        """Note what counts of a result; it is the reference's, unless a broken worker was first."""
        step, reference = result.step, self.reference
        parts = _parts(result, Payload.of(result, self._dimensions), reference)
        nodes = [of for of in parts if isinstance(of, tuple) and not self._is_complete(of)]
        shards = [i for i in _shards(result) if (step, i) not in self._accepted]
        right = _parts(result, reference.payload(step, result.first, result.last), reference)
        if any(parts[of] != right[of] for of in (*nodes, *shards)):
            if before.sender not in self.broken:
                raise Violation("accepted result", f"{_name(result)} differs")
            self.wrong = result
            self.tainted.add(self.term)
        self._complete.update(nodes)
        self._accepted |= {(step, of): parts[of] for of in (*nodes, *shards)}
        for shard in shards:
            self._next[shard] += 1
            self._accepted_from[shard] = (step, peer, result.lease)
        self.accepted_in_all += len(shards)

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
        if bytes(result.payload) != right.payload or result.weights_digest != right.weights_digest:
            raise Violation(invariant, f"{_name(result)} differs")

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
        for assessment in Assessment:
            if assessment is Assessment.WANTED:
                continue
            wanted = before.counts.get(assessment.value, 0) + (assessment is before.assessment)
            if machine.counts[assessment.value] != wanted:
                raise Violation(
                    "assessment",
                    f"{machine.counts[assessment.value]} {assessment.value}, not {wanted}",
                )

    def check_step(self, machine: ParameterServer) -> None:
        """Every step that is complete is applied, and comes to the reference's state."""
        if self.wrong is not None or self._ends_as_it_is:
            return
        step = self.step
        while min(self._next) > step and not self._held(step):
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
            self._check_ranges(machine)

    def server_is_stopped(self, machine: ParameterServer) -> None:
        """A server that waits for a validation loss ends as it is; another one ends its step."""
        self._ends_as_it_is |= self._held(machine.state.step)

    def _held(self, step: int) -> bool:
        """Whether no step may be applied now: the run ends here, or waits for validation."""
        every = self.plan.checkpoint_every
        due = range(0, step, every) if step % every == 0 else ()
        missing = set(due) - self._world.disk.validation_losses.keys()
        most = 0 if self.plan.patience else MOST_WAITING - 1
        return step >= self._world.end or len(missing) > most

    def _check_leases(self, machine: ParameterServer) -> None:
        """Nobody holds what another holds; within a step all that is missing is held by somebody.

        Shards of a worker that was lost do not wait for the end of the step.
        """
        membership = machine.membership
        held: dict[int, int] = {}
        for number, lease in membership.leases.items():
            member = membership.members.get(lease.peer)
            if lease.number != number or member is None or member.state is not PeerState.WORKING:
                raise Violation("lease", f"number {number} at {lease.peer!r}")
            for shard in range(lease.shards[0], lease.shards[1] + 1):
                if held.setdefault(shard, number) != number:
                    raise Violation("lease", f"shard {shard} is held twice")
        unheld = [shard for shard in machine.aggregation.missing() if shard not in held]
        open_now = machine.lifecycle.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
        if open_now and unheld and membership.workers():
            raise Violation("unheld", f"nobody holds the shards {unheld}")

    def _check_ranges(self, machine: ParameterServer) -> None:
        """Between two steps each worker holds one range at most."""
        holders = [lease.peer for lease in machine.membership.leases.values()]
        if machine.lifecycle.phase is RunPhase.TRAINING and len(set(holders)) < len(holders):
            raise Violation("ranges", f"one worker holds several when a step begins: {holders}")

    def check_banned(self, machine: ParameterServer, before: Before) -> None:
        """Who sent other bytes than the right ones is banned by name, and nobody else is."""
        banned = set(machine.admission.banned)
        wrong = before.assessment in (Assessment.REPEAT_DIFFERS, Assessment.NOT_FINITE)
        if wrong and before.sender not in banned:
            raise Violation("banned", f"{before.sender} is not, and what it sent was wrong")
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

    def server_sends(self, peer: Peer, message: Message) -> None:
        """Check what a lease, and weights, may say."""
        if self.wrong is not None:
            return
        if isinstance(message, Grant):
            self._check_grant(peer, message)
        elif isinstance(message, NewWeights):
            self._check_new_weights(peer, message)

    def _check_grant(self, peer: Peer, grant: Grant) -> None:
        """A grant is of all contiguous shards of its lease that are not accepted yet."""
        leased = (grant.lease_first, grant.lease_last)
        self._check_lease(grant.lease, leased, peer, begins=True)
        runs = [
            run
            for now in (self._next, self._next_before)
            for run in runs_of(i for i in range(leased[0], leased[1] + 1) if now[i] == grant.step)
        ]
        if (grant.first, grant.last) not in runs:
            raise Violation("grant", f"{_name(grant)}, not {runs}")
        hidden = b"".join(self.reference.hidden[grant.step][grant.first : grant.last + 1])
        if bytes(grant.hidden) != hidden:
            raise Violation("grant", f"hidden states of {_name(grant)}")
        self._check_inputs(grant)

    def _check_new_weights(self, peer: Peer, message: NewWeights) -> None:
        """Weights alone are for a holder from whom all its shards were accepted before."""
        shards = (message.first, message.last)
        self._check_lease(message.lease, shards, peer, begins=False)
        before = {self._accepted_from.get(i) for i in range(shards[0], shards[1] + 1)}
        if before != {(message.step - 1, peer, message.lease)}:
            raise Violation("weights", f"{_name(message)} after {before}")
        self._check_inputs(message)

    def _check_inputs(self, message: Grant | NewWeights) -> None:
        step, streams = message.step, self.reference.streams
        if step >= self.plan.steps:
            raise Violation("grant", f"{_name(message)} of {self.plan.steps} steps")
        batches = [streams.batch_at(i, step) for i in range(message.first, message.last + 1)]
        for what, wanted, sent in (
            ("fresh", batches[0].fresh, message.fresh),
            ("weights", self.reference.weights[step], bytes(message.weights)),
            ("ids", b"".join(each.ids.tobytes() for each in batches), bytes(message.ids)),
        ):
            if wanted != sent:
                raise Violation("grant", f"{what} of {_name(message)}")

    def _check_lease(self, number: int, shards: Range, peer: Peer, *, begins: bool) -> None:
        """One live lease a shard, with a number that was never another's."""
        if number not in self._leases and begins:
            newest = max(self._live.get(i, 0) for i in range(shards[0], shards[1] + 1))
            if number <= newest:
                raise Violation("lease", f"number {number} after {newest}")
            self._leases[number] = (shards, peer)
            self._live |= dict.fromkeys(range(shards[0], shards[1] + 1), number)
        live = {self._live.get(shard) for shard in range(shards[0], shards[1] + 1)}
        if self._leases.get(number) != (shards, peer) or live != {number}:
            raise Violation("lease", f"number {number} for {shards} at {peer!r} is not live")

    def server_spoke(self, now: float) -> None:
        """A line for a person."""
        self._spoke_at = now

    def server_ticked(self, machine: ParameterServer, applied_at: float, now: float) -> None:
        """While no step completes, somebody is told why."""
        self.check_step(machine)
        self._check_leases(machine)
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


def _name(unit: UnitResult | Grant | NewWeights) -> str:
    return f"step {unit.step}, shards {unit.first} … {unit.last}"


def _parts(result: UnitResult, payload: Payload, reference: Reference) -> dict[Any, Any]:
    """Return what can be compared: loss and hidden state by shard, the sum by node."""
    hidden = map(bytes, payload.hidden)
    shards = dict(
        zip(_shards(result), zip(map(float.hex, payload.losses), hidden, strict=True), strict=True)
    )
    nodes = zip(reference.cover(result.first, result.last), map(bytes, payload.sums), strict=True)
    return shards | dict(nodes)
