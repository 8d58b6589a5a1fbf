"""ParameterServer: grants shards, takes gradients, averages, clips, applies Adagrad, broadcasts.

Each peer:  unknown ──Hello──▶ GREETED ──Ready, the run's fingerprint──▶ WORKING ⇄ SILENT
            unknown ──Hello of an observer──▶ OBSERVING

`_TABLE` at the end lists every message that a peer may send in each of its states; another one is
a PeerError. Whatever comes from a peer that is not known, or from another term, is answered with
StartAfresh, so that a peer's memory of a former server can never be mistaken for this one's.

Its parts: `steps` (which gradients count), `membership` (who is here), `leasing` (who computes
what), `reception` (who comes and goes), `disputes` (who was wrong), `judging` (whether it gets
better), `ending` (the run's phases), `waiting`, `reporting` and `attendance` (how it stands),
`outbox` (what comes of it).
"""

import math
from collections.abc import Callable
from typing import Any

from manychar.numerics.training_step import TrainingState
from manychar.protocol.admission import Admission
from manychar.protocol.aggregation import Aggregation, Assessment, as_frame
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.effects import (
    RUN_FAILED,
    STOPPED,
    Append,
    Effect,
    Finish,
    PeerError,
    Record,
    Result,
    Save,
)
from manychar.protocol.fault_limiter import CUT_OFF_FOR, FaultLimiter
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.lifecycle import Lifecycle, RunPhase
from manychar.protocol.membership import Member, Membership, PeerState
from manychar.protocol.messages import (
    FromMember,
    Goodbye,
    Gradient,
    Heartbeat,
    Hello,
    KeyRole,
    Message,
    Owner,
    Peer,
    Ready,
    Refused,
    Reset,
    Stop,
)
from manychar.protocol.outbox import Outbox
from manychar.protocol.run_report import RunReport
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.stall_report import StallReport
from manychar.protocol.worker_stats import WorkerStatistics

TICK = 0.1
RECORD_EVERY_STEPS = 100
REMARK_EVERY = 1.0
STOP_WITHIN = 5.0
RENEWALS = 2


class ParameterServer:
    """The machine of the server. Times are seconds of any steady clock."""

    def __init__(self, run: RunSpec, *, now: float) -> None:
        self.run = run
        self.dimensions = run.dimensions
        limit = run.operation.steps or math.inf
        self.steps = Aggregation(run.definition, run.streams, run.state, limit=limit)
        self.membership = Membership(run.definition.shards, silence=run.operation.lease_timeout)
        self.outbox = Outbox(run.run, run.term, self.membership)
        self.lease_grants = LeaseGrants(self.steps, self.membership, self.outbox)
        self.admission = Admission(run, self.membership, self.lease_grants, self.outbox)
        self.conflicting_results = ConflictingResults(self.steps, self.admission, self.outbox)
        self.early_stopping = EarlyStopping(
            run.validation_losses,
            on=run.definition.validation > 0,
            every=run.operation.checkpoint_every,
            patience=run.operation.stop_when_no_better,
        )
        self.waiting = StallReport(
            self.steps, self.lease_grants, self.early_stopping, self.outbox, now=now
        )
        self.worker_statistics = WorkerStatistics(
            self.steps, self.membership, self.waiting, self.outbox, now=now
        )
        self.run_report = RunReport(
            run, self.steps, self.membership, self.early_stopping, self.outbox, now=now
        )
        self.lifecycle = Lifecycle(
            run,
            self.steps,
            self.membership,
            self.conflicting_results,
            self.early_stopping,
            self.waiting,
            self.run_report,
            self.outbox,
        )
        self.counts = self.outbox.counts
        self._next_tick = now
        self._fault_limiter = FaultLimiter()
        self._next_remark = now

    @property
    def finished(self) -> bool:
        """Whether nothing more is to come of this server."""
        return self.lifecycle.phase is RunPhase.FINISHED

    @property
    def state(self) -> TrainingState:
        """The state after the steps that were applied."""
        return self.steps.state

    # Events.

    def begin(self, now: float) -> list[Effect]:
        """Start: a run that is through already ends at once."""
        self.lifecycle.begin(now)
        return self.outbox.collect()

    def receive(
        self, peer: Peer, message: Message, now: float, owner: Owner | None = None
    ) -> list[Effect]:
        """Take a message from a peer; PeerError if the peer may not send it.

        `owner` is whose key the transport let in, None where there are no keys.
        """
        if self.finished:
            return []
        if isinstance(message, Hello):
            self._greet(peer, message, owner, now)
        elif not isinstance(message, FromMember):
            raise PeerError(f"{type(message).__name__} to a server")
        elif self._is_overtaken(message, owner):
            self.lifecycle.finish(
                RUN_FAILED, f"a newer server (term {message.term}) has taken this run over"
            )
        else:
            self._receive_from_member(peer, message, now)
        return self.outbox.collect()

    def _is_overtaken(self, message: FromMember, owner: Owner | None) -> bool:
        """Whether a peer has seen a newer server of this run; an observer's word is not enough."""
        looks_only = owner is not None and owner.role is KeyRole.OBSERVER
        newer = message.run == self.run.run and message.term > self.run.term
        return newer and not looks_only

    def _greet(self, peer: Peer, hello: Hello, owner: Owner | None, now: float) -> None:
        known = peer in self.membership.members
        member = self.admission.greet(peer, hello, owner, now)
        if member is None:
            self.outbox.count(Counter.CLIENTS_REFUSED)
            self._fault(peer, owner, hello.name, now)
        elif member.state is PeerState.OBSERVING:
            self.outbox.send(peer, self.run_report.report(now))
            if known:
                return  # who asks again and again does not fill this server's queue
            for roster in self.worker_statistics.rosters(now):
                self.outbox.send(peer, roster)
            self.outbox.send(peer, self.run_report.weights())

    def _receive_from_member(self, peer: Peer, message: FromMember, now: float) -> None:
        member = self.membership.members.get(peer)
        if member is None or (message.run, message.term) != (self.run.run, self.run.term):
            if not isinstance(message, Goodbye):  # who leaves may be gone before it is read
                self.outbox.count(Counter.MESSAGES_FROM_STALE_SESSION)
            self.outbox.send(peer, Reset(run=self.run.run, term=self.run.term))
            return
        member.heard_at = now
        if member.state is PeerState.SILENT:
            self.admission.comes_back(member, now)
        handler = _TABLE.get((member.state, type(message)))
        if handler is None:
            raise PeerError(f"{type(message).__name__} from a peer that is {member.state.value}")
        handler(self, member, message, now)

    def listens_to(self, peer: Peer, now: float, owner: Owner | None = None) -> bool:
        """Whether a message of this sender's is to be read; one that is not is counted."""
        cut_off = self._fault_limiter.is_cut_off(_sender(peer, owner), now)
        if cut_off:
            self.outbox.count(Counter.MESSAGES_IGNORED)
        return not cut_off

    def malformed(
        self, peer: Peer, reason: str, now: float, owner: Owner | None = None
    ) -> list[Effect]:
        """Count a message that the codec or the table refused, against its sender."""
        member = self.membership.members.get(peer)
        name = member.name if member else owner.name if owner else "an unknown peer"
        self.outbox.count_against(name, Counter.MESSAGES_MALFORMED)
        if member is not None:
            member.tally.dropped += 1
        if now >= self._next_remark:
            self._next_remark = now + REMARK_EVERY
            self.outbox.warn(
                f"{name}: dropped: {reason} ({self.counts[Counter.MESSAGES_MALFORMED]:,} in all)"
            )
        self._fault(peer, owner, name, now)
        return self.outbox.collect()

    def _fault(self, peer: Peer, owner: Owner | None, name: str, now: float) -> None:
        """Count a fault against a sender; who has too many is cut off."""
        if not self._fault_limiter.fault(_sender(peer, owner), now):
            return
        self.outbox.count(Counter.SENDERS_BLOCKED)
        self.outbox.warn(f"{name} is not listened to for {CUT_OFF_FOR:.0f} s")
        if (member := self.membership.members.get(peer)) is not None:
            self.admission.leaves(member, "it sends what cannot be read", now)

    def dropped(self, what: Counter, reason: str = "") -> list[Effect]:
        """Count what the shell had to let go; say the reason to everyone, if there is one."""
        self.outbox.count(what)
        return self.remark(reason) if reason else []

    def remark(self, text: str) -> list[Effect]:
        """Say a line of the shell's to everyone."""
        self.outbox.warn(text)
        return self.outbox.collect()

    def waits_for_disk(self, now: float) -> list[Effect]:
        """Say that nothing goes on before there is room for the next checkpoint."""
        step = self.state.step
        self.outbox.warn(f"step {step} waits for the disk: earlier checkpoints are being written")
        before, self.waiting.for_disk = self.waiting.for_disk, True
        self.worker_statistics.tell(now)
        self.waiting.for_disk = before
        return self.outbox.collect()

    def unreachable(self, peer: Peer, now: float) -> list[Effect]:
        """Take note that the transport has no connection to this peer any more."""
        if (member := self.membership.members.get(peer)) is not None:
            self.admission.leaves(member, "its connection is gone", now)
        return self.outbox.collect()

    def revoked(self, peer: Peer, now: float) -> list[Effect]:
        """Drop a message that came with a key that is not good any more, and its sender."""
        self.outbox.count(Counter.MESSAGES_FROM_REVOKED_KEY)
        if (member := self.membership.members.get(peer)) is not None:
            self.admission.revoked(member, now)
        return self.outbox.collect()

    # How it ends.

    def saved(self, step: int, now: float) -> list[Effect]:
        """Take note that the checkpoint of `step` is on disk."""
        self.lifecycle.saved(step, now)
        return self.outbox.collect()

    def save_failed(self, step: int, reason: str, now: float) -> list[Effect]:
        """Take note that it is not."""
        self.lifecycle.save_failed(step, reason, now)
        return self._go_on_after_verdict(now)

    def validated(self, step: int, nats: float, now: float) -> list[Effect]:
        """Take the loss of a checkpoint on the held-out text, in nats a character."""
        if self.finished:
            return []
        self.lifecycle.validated(step, nats, now)
        return self._go_on_after_verdict(now)

    def not_validated(self, step: int, reason: str, now: float) -> list[Effect]:
        """Take note that a checkpoint cannot be judged: it is not there any more."""
        self.lifecycle.not_validated(step, reason, now)
        return self._go_on_after_verdict(now)

    def validation_failed(self, reason: str, now: float) -> list[Effect]:
        """Take note that nothing is judged any more."""
        self.lifecycle.validation_failed(reason, now)
        return self._go_on_after_verdict(now)

    def _go_on_after_verdict(self, now: float) -> list[Effect]:
        self.lifecycle.after_verdict(now)
        self._apply_what_is_complete(now)
        self.lifecycle.settle()
        return self.outbox.collect()

    def stop(self, code: int, reason: str, *, now: float, by: float) -> list[Effect]:
        """End the step, write a checkpoint and finish; at time `by` without the step's end."""
        self.lifecycle.stop(Finish(code, reason), now=now, by=by)
        return self.outbox.collect()

    def _asked_to_stop(self, member: Member, message: Stop, now: float) -> None:
        if member.owner is not None and member.owner.role is not KeyRole.OPERATOR:
            reason = f"the key of {member.owner.name} is not an operator's: it cannot stop a run"
            self.outbox.send(member.peer, Refused(reason=reason))
            return
        finish = Finish(STOPPED, f"stopped by {member.name}")
        self.lifecycle.stop(finish, now=now, by=now + STOP_WITHIN)

    def tick(self, now: float) -> list[Effect]:
        """Notice who is silent, ask again for what is late, report, and complain of waiting."""
        if self.finished:
            return []
        self._next_tick = now + TICK
        self.admission.mind_silence(now)
        self.lease_grants.ask_again(now)
        self.waiting.tick(now)
        self.lifecycle.tick(now)
        self.run_report.tick(now)
        self.worker_statistics.tick(now)
        return self.outbox.collect()

    def catch_up(self) -> None:
        """Do what nobody waits for; to be called when what had come has been carried out."""
        self.steps.digest_accepted()

    def deadline(self) -> float | None:
        """When the next tick is due."""
        return None if self.finished else self._next_tick

    # Gradients.

    def _gradient(self, member: Member, gradient: Gradient, now: float) -> None:
        if gradient.shard >= self.dimensions.shards:
            raise PeerError(f"a gradient of shard {gradient.shard}")
        what = f"step {gradient.step}, shard {gradient.shard}"
        match assessment := self.steps.assess(gradient):
            case Assessment.WANTED:
                self._accept(member, gradient, now)
                return
            case Assessment.NOT_OPEN if self.lifecycle.phase is not RunPhase.SAVING:
                raise PeerError(f"a gradient of {what}, which is not open yet")
            case Assessment.NOT_FINITE:
                reason = f"{member.name} sent a loss or gradient that is not finite: {what}"
                self.lifecycle.finish(RUN_FAILED, reason)
            case Assessment.REPEAT_DIFFERS:
                self.conflicting_results.begin(member, gradient)
            case Assessment.FROM_ANOTHER_STATE:
                self._distrust(member, gradient, now)
        member.tally.dropped += 1
        self.outbox.count(Counter(assessment.value))

    def _accept(self, member: Member, gradient: Gradient, now: float) -> None:
        self.membership.progressed(gradient.shard)
        self.steps.accept(gradient, member.names)
        self.worker_statistics.delivers(member, now)
        self.lease_grants.counted(gradient.shard, member.peer)
        self._apply_what_is_complete(now)

    def _apply_what_is_complete(self, now: float) -> None:
        """Apply every step whose gradients are all there, up to one that waits for a verdict."""
        while (
            self.steps.complete
            and self.lifecycle.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
            and not self.early_stopping.waits(self.state.step)
        ):
            self.steps.apply()
            self.waiting.applied(now)
            self._after_step(now)

    def _distrust(self, member: Member, gradient: Gradient, now: float) -> None:
        """Drop what was computed from another state, and begin that lease anew."""
        self.outbox.warn(
            f"{member.name} computed step {gradient.step}, shard {gradient.shard}"
            " from another state: dropped"
        )
        lease = self.membership.leases.get(gradient.shard)
        if lease is None or (lease.peer, lease.number) != (member.peer, gradient.lease):
            return  # it has another lease by now, or nobody asked it
        if lease.renewed < RENEWALS:
            self.lease_grants.renew(gradient.shard, now)
        else:
            why = f"it computed shard {gradient.shard} from another state {RENEWALS + 1} times"
            self.admission.bar(member.names, why, now)

    def computed(self, shard: int, step: int, result: Result, now: float) -> list[Effect]:
        """Take this server's own result for a unit on which two others differ."""
        if self.finished:
            return []
        if (back := self.conflicting_results.settle(shard, step, result, now)) is not None:
            self.lifecycle.phase = RunPhase.FINISHED
            self.outbox.add(back)
        self.lifecycle.settle()
        return self.outbox.collect()

    # Steps.

    def _after_step(self, now: float) -> None:
        """Do what the new weights call for."""
        step, operation = self.state.step, self.run.operation
        over = self.early_stopping.is_over(step)
        ends = over or self.steps.closed or self.lifecycle.phase is RunPhase.STOPPING
        if not ends:
            self.worker_statistics.broadcasts(now)
            self.lease_grants.broadcast(now)  # before all else: workers are waiting for it
        self.outbox.add(Append(step, self.steps.loss, as_frame(self.state.parameters.flat)))
        if _is_due(step, RECORD_EVERY_STEPS) or ends:
            self.outbox.add(Record(self.run_report.report(now)))
        self.lifecycle.after_verdict(now)
        if ends:
            if self.lifecycle.phase is not RunPhase.SAVING:
                self.lifecycle.save(now)
            return
        if _is_due(step, operation.checkpoint_every):
            self.early_stopping.expect(step)
            self.outbox.add(Save(self.state))
        if _is_due(step, operation.sample_every):
            self.run_report.show(now)
            self.outbox.show(self.run_report.weights())


def _sender(peer: Peer, owner: Owner | None) -> bytes:
    """Return who is held to account: a key's owner, or the connection."""
    return peer if owner is None else b"key " + owner.name.encode()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


_Handler = Callable[[ParameterServer, Member, Any, float], None]


def _at_reception(handler: Callable[[Admission, Member, Any, float], None]) -> _Handler:
    return lambda server, member, message, now: handler(server.admission, member, message, now)


_READY = _at_reception(Admission.ready)
_HEARTBEAT = _at_reception(Admission.heartbeat)
_GOODBYE = _at_reception(Admission.goodbye)
_NOT_READY = _at_reception(Admission.not_ready)

_TABLE: dict[tuple[PeerState, type[Any]], _Handler] = {
    (PeerState.ADMITTED, Ready): _READY,
    (PeerState.ADMITTED, Gradient): _NOT_READY,
    (PeerState.ADMITTED, Heartbeat): _HEARTBEAT,
    (PeerState.ADMITTED, Goodbye): _GOODBYE,
    (PeerState.WORKING, Ready): _READY,
    (PeerState.WORKING, Gradient): ParameterServer._gradient,
    (PeerState.WORKING, Heartbeat): _HEARTBEAT,
    (PeerState.WORKING, Goodbye): _GOODBYE,
    (PeerState.OBSERVING, Heartbeat): _HEARTBEAT,
    (PeerState.OBSERVING, Goodbye): _GOODBYE,
    (PeerState.OBSERVING, Stop): ParameterServer._asked_to_stop,
}
