"""Judges every event of a simulated run against the reference, and names what was broken.

It keeps a model of its own of what the server must have accepted, and knows every byte that may
be counted, sent, granted or saved. The machines are read, never changed.

Where a broken worker's wrong gradient was the first of its identity and counts, the term is
tainted: its bytes are not checked until the server resumes earlier.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from manychar.numerics.training_step import TrainingState
from manychar.protocol.aggregation import STEPS_COMPARED, Assessment
from manychar.protocol.early_stopping import MOST_WAITING
from manychar.protocol.effects import Effect, ResumeBefore, Send
from manychar.protocol.lifecycle import RunPhase
from manychar.protocol.membership import PeerState
from manychar.protocol.messages import (
    Gradient,
    Grant,
    Hello,
    Message,
    Peer,
    Reset,
    Role,
    Weights,
    digest,
)
from manychar.protocol.server import ParameterServer
from tests.simulation.reference import bytes_of
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
        self.wrong: Gradient | None = None
        self.tainted: set[int] = set()
        self._next: list[int] = []
        self._next_before: list[int] = []
        self._accepted: dict[tuple[int, int], tuple[Any, ...]] = {}
        self._leases: dict[int, tuple[int, Peer]] = {}
        self._live: dict[int, int] = {}
        self._spoke_at = 0.0
        self._ends_as_it_is = False

    def server_starts(self, machine: ParameterServer, saved_step: int, now: float) -> None:
        """A server begins, from the newest checkpoint that reached the disk."""
        if machine.spec.term <= self.term:
            raise Violation("term", f"term {machine.spec.term} after term {self.term}")
        if machine.state.step != saved_step:
            raise Violation("resume", f"from step {machine.state.step}, saved is {saved_step}")
        self.term = machine.spec.term
        self.step = saved_step
        self._next = [saved_step] * self.plan.shards
        self._next_before = list(self._next)
        self._accepted, self._leases, self._live = {}, {}, {}
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
            member is None or getattr(message, "term", None) != machine.spec.term
        )
        validated = (
            isinstance(message, Gradient)
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

    def _assess(self, machine: ParameterServer, gradient: Gradient) -> Assessment:
        shard, step, next_step = gradient.shard, gradient.step, self._next[gradient.shard]
        if step < next_step:
            if step < self.step - STEPS_COMPARED or (shard, step) not in self._accepted:
                return Assessment.REPEAT_TOO_OLD
            if not self._is_from_here(gradient):
                return Assessment.FROM_ANOTHER_STATE
            same = self._accepted[shard, step] == _content(gradient)
            return Assessment.REPEAT if same else Assessment.REPEAT_DIFFERS
        open_now = machine.lifecycle.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
        if not open_now or step > self.step or step >= self.plan.steps:
            return Assessment.NOT_OPEN
        return Assessment.WANTED if self._is_from_here(gradient) else Assessment.FROM_ANOTHER_STATE

    def _is_from_here(self, gradient: Gradient) -> bool:
        """Whether it names the reference's hidden state."""
        return gradient.hidden_digest == digest(
            self.reference.hidden[gradient.step][gradient.shard]
        )

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
        if self.wrong is not None:
            return
        self._next_before = list(self._next)
        if before.assessment is Assessment.WANTED and isinstance(message, Gradient):
            self._check_wanted(message, before)
            self._next[message.shard] += 1
            self._accepted[message.shard, message.step] = _content(message)
        step, accepted = machine.aggregation.state.step, machine.aggregation._senders
        actual = [step + (shard in accepted[step]) for shard in range(len(self._next))]
        if actual != self._next:
            what = before.assessment.value if before.assessment else "no gradient of ours"
            raise Violation(
                "counted", f"next steps are {actual}, not {self._next}, after one that is: {what}"
            )
        self._check_counts(machine, before)
        self.check_step(machine)
        self._check_leases(machine)

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

    def _check_wanted(self, gradient: Gradient, before: Before) -> None:
        """The gradient that counts is the recomputed one, unless a broken worker was the first."""
        if (gradient.shard, gradient.step) in self._accepted:
            raise Violation("twice", f"step {gradient.step}, shard {gradient.shard}")
        self.accepted_in_all += 1
        if before.sender in self.broken and _content(gradient) != self._content_of(gradient):
            self.wrong = gradient
            self.tainted.add(self.term)
        else:
            self.check_piece(gradient, "accepted gradient")

    def check_piece(self, gradient: Gradient, invariant: str) -> None:
        """A gradient is the recomputed one, to the last bit."""
        if _content(gradient) != self._content_of(gradient):
            raise Violation(invariant, f"step {gradient.step}, shard {gradient.shard} differs")

    def _content_of(self, gradient: Gradient) -> tuple[Any, ...]:
        piece = self.reference.pieces[gradient.shard, gradient.step]
        return (piece.loss, piece.gradient, piece.hidden)

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
            self.check_state(machine.state, "state")

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
        leases = machine.membership.leases
        if len({lease.number for lease in leases.values()}) != len(leases):
            raise Violation("lease", "two leases have one number")
        for shard, lease in leases.items():
            if lease.shard != shard or lease.peer not in machine.membership.members:
                raise Violation("lease", f"of shard {shard} at {lease.peer!r}")

    def check_banned(self, machine: ParameterServer, before: Before) -> None:
        """Who sent other bytes than the right ones is banned by name, and nobody else is."""
        banned = set(machine.admission.banned)
        if before.assessment is Assessment.REPEAT_DIFFERS and before.sender not in banned:
            raise Violation("banned", f"{before.sender} is not, and its repeat was wrong")
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
        elif isinstance(message, Weights):
            self._check_weights(peer, message)

    def _check_grant(self, peer: Peer, grant: Grant) -> None:
        shard, step = grant.shard, grant.step
        self._check_lease(grant.lease, shard, peer, begins=True)
        if step not in (self._next[shard], self._next_before[shard]) or step >= self.plan.steps:
            raise Violation("grant", f"shard {shard} from step {step}, not {self._next[shard]}")
        batch = self.reference.streams.batch_at(shard, step)
        for what, ours, theirs in (
            ("fresh", batch.fresh, grant.fresh),
            ("weights", self.reference.weights[step], bytes(grant.weights)),
            ("hidden", self.reference.hidden[step][shard], bytes(grant.hidden)),
            ("ids", batch.ids.tobytes(), bytes(grant.ids)),
        ):
            if ours != theirs:
                raise Violation("grant", f"{what} of shard {shard} at step {step}")

    def _check_weights(self, peer: Peer, weights: Weights) -> None:
        if bytes(weights.weights) != self.reference.weights[weights.version]:
            raise Violation("weights", f"version {weights.version}")
        for unit, ids in zip(weights.units, weights.ids, strict=True):
            self._check_lease(unit.lease, unit.shard, peer, begins=False)
            batch = self.reference.streams.batch_at(unit.shard, unit.step)
            if (
                unit.step >= self.plan.steps
                or unit.step != weights.version
                or bool(unit.flag) != batch.fresh
                or bytes(ids) != batch.ids.tobytes()
            ):
                raise Violation("weights", f"version {weights.version} with {unit}")

    def _check_lease(self, number: int, shard: int, peer: Peer, *, begins: bool) -> None:
        """One live lease a shard, with a number that was never another's."""
        if number not in self._leases and begins:
            if number <= self._live.get(shard, 0):
                raise Violation("lease", f"number {number} after {self._live[shard]}")
            self._leases[number] = (shard, peer)
            self._live[shard] = number
        if self._leases.get(number) != (shard, peer) or self._live[shard] != number:
            raise Violation("lease", f"number {number} for shard {shard} at {peer!r} is not live")

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


def _content(gradient: Gradient) -> tuple[Any, ...]:
    return (gradient.loss, bytes(gradient.gradient), bytes(gradient.hidden))
