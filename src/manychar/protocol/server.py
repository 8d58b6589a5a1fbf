"""ParameterServer: grants shards, takes gradients, averages, clips, applies Adagrad, broadcasts.

The run:    TRAINING ──the last step is applied──▶ SAVING ──saved──▶ FINISHED
            TRAINING ──stop──▶ STOPPING ──the step is applied, or no time left──▶ SAVING

Each peer:  unknown ──Hello──▶ GREETED ──Ready, the run's fingerprint──▶ WORKING ⇄ SILENT
            unknown ──Hello of an observer──▶ OBSERVING

`_TABLE` at the end lists every message that a peer may send in each of its states; another one is
a PeerError. Whatever comes from a peer that is not known, or from another term, is answered with
StartAfresh, so that a peer's memory of a former server can never be mistaken for this one's.
"""

import collections
import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

from manychar.numerics.corpus import Streams
from manychar.numerics.definition import Definition
from manychar.numerics.train import State
from manychar.protocol.effects import Effect, Finish, PeerError, Record, Save, Say, Send, Show
from manychar.protocol.membership import Lease, Member, Membership, PeerState
from manychar.protocol.messages import (
    WIRE_VERSION,
    Alive,
    Dimensions,
    Done,
    Goodbye,
    Gradient,
    Grant,
    Heartbeat,
    Hello,
    Message,
    Notice,
    Peer,
    Ready,
    Refused,
    Report,
    Revoke,
    Role,
    StartAfresh,
    Unit,
    Weights,
    Welcome,
)
from manychar.protocol.steps import Steps, Verdict, as_frame

TICK = 0.1
REPORT_EVERY = 0.2
RECORD_EVERY_STEPS = 100
FIRST_COMPLAINT = 1.0
COMPLAIN_EVERY = 10.0
MALFORMED_SHOWN = 10
TEXT_LENGTH = 500
NAMES_SHOWN = 32


class Phase(enum.Enum):
    """Where the run stands."""

    TRAINING = "training"
    STOPPING = "stopping"
    SAVING = "saving"
    FINISHED = "finished"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """How a run is carried out. Nothing here can change a bit of the weights.

    `steps` is the total, 0 for no end; intervals are in steps, 0 for never; `silence` is the
    lease timeout in seconds; `seconds_before` is what the run has taken before this server started.
    """

    steps: int
    checkpoint_every: int
    sample_every: int
    silence: float
    seconds_before: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a server is started with: which run, in which term, from which state."""

    run: str
    term: int
    definition: Definition
    operation: Operation
    streams: Streams
    vocabulary: str
    state: State
    fingerprint: str
    libraries: Mapping[str, str]

    @property
    def dimensions(self) -> Dimensions:
        """The run's sizes."""
        return dimensions_of(self.definition, len(self.vocabulary))


def dimensions_of(definition: Definition, vocabulary_size: int) -> Dimensions:
    """Return the sizes of a run of this definition."""
    return Dimensions(
        vocabulary_size=vocabulary_size,
        hidden=definition.hidden,
        seq_length=definition.seq_length,
        streams=definition.streams,
        shards=definition.shards,
        delay=definition.delay,
        dtype=definition.dtype,
    )


class ParameterServer:
    """The machine of the server. Times are seconds of any steady clock."""

    def __init__(self, run: Run, *, now: float) -> None:
        self.run = run
        self.dimensions = run.dimensions
        self.phase = Phase.TRAINING
        self.counts: collections.Counter[str] = collections.Counter()
        limit = run.operation.steps or math.inf
        self.steps = Steps(run.definition, run.streams, run.state, limit=limit)
        self.membership = Membership(run.definition.shards, silence=run.operation.silence)
        self._effects: list[Effect] = []
        self._began_at = now - run.operation.seconds_before
        self._applied_at = now
        self._next_tick = now
        self._next_report = now
        self._reported_step = -1
        self._next_complaint = now + FIRST_COMPLAINT
        self._stop_by = math.inf
        self._ending = Finish(0, "")

    @property
    def state(self) -> State:
        """The state after the steps that were applied."""
        return self.steps.state

    # Events.

    def begin(self, now: float) -> list[Effect]:
        """Start: a run that is through already ends at once."""
        if self.state.step >= self.steps.limit:
            self._save_and_finish(now)
        return self._collected()

    def receive(self, peer: Peer, message: Message, now: float) -> list[Effect]:
        """Take a message from a peer; PeerError if the peer may not send it."""
        if self.phase is Phase.FINISHED:
            return []
        if isinstance(message, Hello):
            self._greet(peer, message, now)
        elif not isinstance(message, Ready | Gradient | Heartbeat | Goodbye):
            raise PeerError(f"{type(message).__name__} to a server")
        elif message.run == self.run.run and message.term > self.run.term:
            self._end(3, f"a newer server (term {message.term}) has taken this run over")
        else:
            self._receive_from_member(peer, message, now)
        return self._collected()

    def _receive_from_member(
        self, peer: Peer, message: Ready | Gradient | Heartbeat | Goodbye, now: float
    ) -> None:
        member = self.membership.members.get(peer)
        if member is None or (message.run, message.term) != (self.run.run, self.run.term):
            self.counts["from another life"] += 1
            self._send(peer, StartAfresh(run=self.run.run, term=self.run.term))
            return
        member.heard_at = now
        if member.state is PeerState.SILENT:
            member.state = PeerState.WORKING
            self._notice(f"{member.name} is back")
            self._rebalance(now)
        handler = _TABLE.get((member.state, type(message)))
        if handler is None:
            raise PeerError(f"{type(message).__name__} from a peer that is {member.state.value}")
        handler(self, member, message, now)

    def malformed(self, peer: Peer, reason: str) -> list[Effect]:
        """Count a message that the codec or the table refused, against its sender."""
        member = self.membership.members.get(peer)
        self.counts["malformed"] += 1
        if self.counts["malformed"] <= MALFORMED_SHOWN:
            self._notice(f"{member.name if member else 'an unknown peer'}: dropped: {reason}")
        return self._collected()

    def unreachable(self, peer: Peer, now: float) -> list[Effect]:
        """Take note that the transport has no connection to this peer any more."""
        if (member := self.membership.members.get(peer)) is not None:
            self._leaves(member, "its connection is gone", now)
        return self._collected()

    def saved(self, step: int) -> list[Effect]:
        """Take note that the checkpoint of `step` is on disk."""
        if self.phase is Phase.SAVING and step == self.state.step:
            self._end(self._ending.code, self._ending.reason)
        return self._collected()

    def save_failed(self, step: int, reason: str) -> list[Effect]:
        """End the run: a checkpoint could not be written."""
        self._end(3, f"the checkpoint of step {step} could not be written: {reason}")
        return self._collected()

    def stop(self, code: int, reason: str, *, now: float, by: float) -> list[Effect]:
        """End the step, write a checkpoint and finish; at time `by` without the step's end."""
        if self.phase is Phase.TRAINING:
            self.phase = Phase.STOPPING
            self._ending = Finish(code, reason)
            self._stop_by = by
            if not self.membership.workers():
                self._save_and_finish(now)
        return self._collected()

    def tick(self, now: float) -> list[Effect]:
        """Notice who is silent, ask again for what is late, report, and complain of waiting."""
        if self.phase is Phase.FINISHED:
            return []
        self._next_tick = now + TICK
        self._judge_silence(now)
        for lease in list(self.membership.leases.values()):
            self._ask_again(lease, now)
        if now >= self._next_complaint and self.phase is not Phase.SAVING:
            self._complain(now)
        if now >= self._stop_by and self.phase is Phase.STOPPING:
            self._save_and_finish(now)
        if now >= self._next_report and self.state.step != self._reported_step:
            self._report(now)
        return self._collected()

    def deadline(self) -> float | None:
        """When the next tick is due."""
        return None if self.phase is Phase.FINISHED else self._next_tick

    # Who comes and goes.

    def _greet(self, peer: Peer, hello: Hello, now: float) -> None:
        if refusal := _why_not(hello):
            self._send(peer, Refused(reason=refusal))
            self._notice(f"{hello.name} was refused: {refusal}")
            return
        for former in self.membership.predecessors(peer, hello):
            if former.instance != hello.instance:
                reason = f"another worker is named {hello.name} now"
                self._send(former.peer, Refused(reason=reason))
            self._forget(former, now)
        member = self.membership.greet(peer, hello, now)
        observer = member.role is Role.OBSERVER
        self._send(peer, self._welcome(observer=observer))
        if observer:
            self._send(peer, self._as_report(now))
            self._send(peer, self._newest_weights())

    def _welcome(self, *, observer: bool) -> Welcome:
        return Welcome(
            run=self.run.run,
            term=self.run.term,
            step=self.state.step,
            steps=self.run.operation.steps,
            dimensions=self.dimensions,
            numerics=self.run.definition.numerics,
            seed=self.run.definition.seed,
            silence=self.run.operation.silence,
            vocabulary=self.run.vocabulary.encode() if observer else b"",
        )

    def _ready(self, member: Member, ready: Ready, now: float) -> None:
        member.slowest = max(member.slowest, ready.slowest)
        if ready.fingerprint != self.run.fingerprint:
            self._refuse_arithmetic(member, ready, now)
        elif member.state is PeerState.GREETED:
            member.state = PeerState.WORKING
            self._notice(f"{member.name} has joined")
            self._rebalance(now)
            if not self.membership.leases_of(member.peer):
                self._notice(
                    f"{member.name} stands by: this run has {self.dimensions.shards} shards"
                    f" (--shards) and {len(self.membership.workers())} workers"
                )

    def _refuse_arithmetic(self, member: Member, ready: Ready, now: float) -> None:
        reason = (
            f"its arithmetic gives other bits than the run's (--numerics"
            f" {self.run.definition.numerics}): it has {_as_words(ready.libraries)};"
            f" the run has {_as_words(self.run.libraries)}"
        )
        self._send(member.peer, Refused(reason=reason[:TEXT_LENGTH]))
        self._notice(f"{member.name} was refused: {reason}")
        self._forget(member, now)

    def _heartbeat(self, member: Member, beat: Heartbeat, now: float) -> None:
        member.units, member.units_at = beat.units, now
        member.slowest = max(member.slowest, beat.slowest)
        self._send(member.peer, Alive(run=self.run.run, term=self.run.term))

    def _goodbye(self, member: Member, goodbye: Goodbye, now: float) -> None:
        self._leaves(member, goodbye.reason, now)

    def _leaves(self, member: Member, why: str, now: float) -> None:
        if member.role is Role.WORKER:
            self._notice(f"{member.name} has left: {why}")
        self._forget(member, now)

    def _forget(self, member: Member, now: float) -> None:
        self.membership.forget(member)
        if self.membership.leases_of(member.peer):
            self._rebalance(now)

    def _judge_silence(self, now: float) -> None:
        """Take the leases of those who have been silent for too long."""
        for member in list(self.membership.members.values()):
            if self.membership.is_lost(member, now):
                member.state = PeerState.SILENT
                silent_for = now - member.heard_at
                self._notice(
                    f"{member.name} has said nothing for {silent_for:.1f} s: taken for lost"
                )
                self._rebalance(now)
            elif self.membership.is_forgotten(member, now):
                self._forget(member, now)

    # Leases.

    def _rebalance(self, now: float) -> None:
        change = self.membership.rebalance()
        for lease in change.revoked:
            if lease.peer in self.membership.members:
                revoke = Revoke(run=self.run.run, term=self.run.term, lease=lease.number)
                self._send(lease.peer, revoke)
        for lease in change.given:
            self._grant(lease, now)

    def _grant(self, lease: Lease, now: float) -> None:
        """Send what the holder needs for its shard's next step, and for the open steps after it."""
        step = self.steps.next(lease.shard)
        if not self.steps.is_open(step):
            return
        lease.begun = True
        lease.ask(step, now)
        batch = self.steps.batch(lease.shard, step)
        grant = Grant(
            run=self.run.run,
            term=self.run.term,
            lease=lease.number,
            shard=lease.shard,
            step=step,
            version=self.steps.version(step),
            fresh=batch.fresh,
            weights=self.steps.weights(step),
            hidden=self.steps.hidden(lease.shard),
            ids=as_frame(batch.ids),
        )
        self._send(lease.peer, grant)
        for later in self.steps.open_after(step + 1):
            self._send(lease.peer, self._weights_for(later, [lease]))

    def _ask_again(self, lease: Lease, now: float) -> None:
        """Grant again what no answer came to, unless the last heartbeat says it is being done."""
        step = self.steps.next(lease.shard)
        if not self.steps.is_open(step):
            return
        if lease.asked_step != step:
            lease.ask(step, now)
        if now < lease.asked_at + lease.patience:
            return
        holder = self.membership.members[lease.peer]
        if holder.units_at >= lease.asked_at and holder.is_busy_with(lease.number, step):
            lease.asked_at = now
        else:
            self.counts["asked again"] += 1
            self._grant(lease, now)

    # Gradients and steps.

    def _gradient(self, member: Member, gradient: Gradient, now: float) -> None:
        if gradient.shard >= self.dimensions.shards:
            raise PeerError(f"a gradient of shard {gradient.shard}")
        verdict = self.steps.judge(gradient)
        what = f"step {gradient.step}, shard {gradient.shard}"
        if verdict is Verdict.WANTED:
            self._accept(gradient, now)
            return
        self.counts[verdict.value] += 1
        if verdict is Verdict.NOT_OPEN and self.phase is not Phase.SAVING:
            raise PeerError(f"a gradient of {what}, which is not open yet")
        if verdict is Verdict.NOT_FINITE:
            self._end(3, f"{member.name} sent a loss or gradient that is not finite: {what}")
        elif verdict is Verdict.REPEAT_DIFFERS:
            self._notice(f"{member.name} sent other bytes than were accepted: {what}")
        elif verdict is Verdict.FROM_ANOTHER_STATE:
            self._notice(f"{member.name} computed {what} from another state: dropped")
            lease = self.membership.leases.get(gradient.shard)
            if lease is not None and lease.peer == member.peer:
                self._grant(self.membership.lease(gradient.shard, member.peer), now)

    def _accept(self, gradient: Gradient, now: float) -> None:
        self.membership.progressed(gradient.shard)
        self.steps.accept(gradient)
        while self.steps.complete and self.phase in (Phase.TRAINING, Phase.STOPPING):
            self.steps.apply()
            self._applied_at = now
            self._next_complaint = now + FIRST_COMPLAINT
            self._after_step(now)

    def _after_step(self, now: float) -> None:
        """Do what the new weights call for."""
        step, operation = self.state.step, self.run.operation
        last = step >= self.steps.limit
        if _is_due(step, RECORD_EVERY_STEPS) or last:
            self._effects.append(Record(self._as_report(now)))
        if last or self.phase is Phase.STOPPING:
            self._save_and_finish(now)
            return
        self._broadcast(now)
        if _is_due(step, operation.checkpoint_every):
            self._effects.append(Save(self.state))
        if _is_due(step, operation.sample_every):
            self._report(now)
            self._show(self._newest_weights())

    def _broadcast(self, now: float) -> None:
        """Send the new weights with the step they open, and begin leases that could not begin."""
        opened = self.state.step + self.dimensions.delay
        if not self.steps.is_open(opened):
            return
        begun: dict[Peer, list[Lease]] = {}
        for lease in self.membership.leases.values():
            if lease.begun:
                begun.setdefault(lease.peer, []).append(lease)
            else:
                self._grant(lease, now)
        for peer, leases in begun.items():
            self._send(peer, self._weights_for(opened, leases))

    def _save_and_finish(self, now: float) -> None:
        self.phase = Phase.SAVING
        self.steps.close()
        self._report(now)
        self._show(self._newest_weights())
        self._effects.append(Save(self.state))

    def _end(self, code: int, reason: str) -> None:
        self.phase = Phase.FINISHED
        done = Done(run=self.run.run, term=self.run.term, code=code, reason=reason[:TEXT_LENGTH])
        for peer in self.membership.members:
            self._send(peer, done)
        self._effects.append(Finish(code, reason))

    # What is said.

    def _weights_for(self, step: int, leases: list[Lease]) -> Weights:
        """Return the weights that an open step is computed on, with its units in these leases."""
        batches = [self.steps.batch(lease.shard, step) for lease in leases]
        return Weights(
            run=self.run.run,
            term=self.run.term,
            version=self.steps.version(step),
            weights=self.steps.weights(step),
            units=tuple(
                Unit(lease.number, lease.shard, step, batch.fresh)
                for lease, batch in zip(leases, batches, strict=True)
            ),
            ids=tuple(as_frame(batch.ids) for batch in batches),
        )

    def _newest_weights(self) -> Weights:
        return Weights(
            run=self.run.run,
            term=self.run.term,
            version=self.state.step,
            weights=as_frame(self.state.parameters.flat),
            units=(),
            ids=(),
        )

    def _as_report(self, now: float) -> Report:
        holding = {lease.peer for lease in self.membership.leases.values()}
        workers = self.membership.workers()
        return Report(
            run=self.run.run,
            term=self.run.term,
            step=self.state.step,
            steps=self.run.operation.steps,
            loss=self.steps.loss,
            smooth_loss=self.state.smooth_loss,
            characters=self.state.step * self.run.definition.characters_per_step,
            seconds=now - self._began_at,
            workers=tuple(m.name for m in workers if m.peer in holding)[:NAMES_SHOWN],
            standing_by=sum(member.peer not in holding for member in workers),
            counts=dict(self.counts),
        )

    def _report(self, now: float) -> None:
        self._next_report = now + REPORT_EVERY
        self._reported_step = self.state.step
        self._show(self._as_report(now))

    def _show(self, message: Report | Weights) -> None:
        self._effects.append(Show(message))
        for observer in self.membership.observers():
            self._send(observer.peer, message)

    def _notice(self, text: str) -> None:
        self._effects.append(Say(text))
        notice = Notice(run=self.run.run, term=self.run.term, text=text[:TEXT_LENGTH])
        for observer in self.membership.observers():
            self._send(observer.peer, notice)

    def _complain(self, now: float) -> None:
        """Say for whom the run is waiting."""
        self._next_complaint = now + COMPLAIN_EVERY
        step, waited = self.state.step, now - self._applied_at
        late = [
            f"{self.membership.members[lease.peer].name} (shard {shard})"
            for shard, lease in self.membership.leases.items()
            if self.steps.next(shard) == step
        ]
        names = ", ".join(late[:5]) + (f" and {len(late) - 5} more" if len(late) > 5 else "")
        whom = names or "a worker: none is here"
        self._notice(f"step {step} has waited {waited:.0f} s for {whom}")

    def _send(self, peer: Peer, message: Message) -> None:
        self._effects.append(Send(message, peer))

    def _collected(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects


def _why_not(hello: Hello) -> str:
    """Return the reason why a peer cannot be here, or nothing."""
    if hello.wire != WIRE_VERSION:
        return f"it speaks wire version {hello.wire}, this server speaks {WIRE_VERSION}"
    if hello.role not in tuple(Role):
        return f"there is no role {hello.role}"
    return ""


def _as_words(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(libraries.items()))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


_Handler = Callable[[ParameterServer, Member, Any, float], None]

_TABLE: dict[tuple[PeerState, type[Any]], _Handler] = {
    (PeerState.GREETED, Ready): ParameterServer._ready,
    (PeerState.GREETED, Heartbeat): ParameterServer._heartbeat,
    (PeerState.GREETED, Goodbye): ParameterServer._goodbye,
    (PeerState.WORKING, Ready): ParameterServer._ready,
    (PeerState.WORKING, Gradient): ParameterServer._gradient,
    (PeerState.WORKING, Heartbeat): ParameterServer._heartbeat,
    (PeerState.WORKING, Goodbye): ParameterServer._goodbye,
    (PeerState.OBSERVING, Heartbeat): ParameterServer._heartbeat,
    (PeerState.OBSERVING, Goodbye): ParameterServer._goodbye,
}
