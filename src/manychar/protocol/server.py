"""ParameterServer: grants shards, takes gradients, averages, clips, applies Adagrad, broadcasts.

The run (lifecycle):  STARTING ──Started──▶ TRAINING ──the last step, or no better──▶ SAVING
                      TRAINING ──StopRequested, or Stop──▶ STOPPING ──the step's end──▶ SAVING
                      SAVING ──saved and validated──▶ FINISHED; a failure leads there from anywhere

Each peer (membership):  UNKNOWN ──Hello──▶ ADMITTED ──Ready──▶ WORKING ⇄ SILENT
                         UNKNOWN ──Hello of an observer──▶ OBSERVING

`_EVENTS` at the end names what each event may do to the run, `_MESSAGES` which messages a peer may
send in its state, and where they lead; another one is a PeerError. Hello is taken in each state: it
is a new connection. A silent worker is working again before its message is handled. Whatever comes
from a peer that is not known, or from another term, is answered with Reset, so that a peer's memory
of a former server can never be mistaken for this one's.

Once FINISHED, nothing changes the outcome: every event is ignored.
"""

import math
import typing
from collections.abc import Callable

from manychar.numerics.training_step import TrainingState
from manychar.protocol import events
from manychar.protocol.admission import Admission
from manychar.protocol.aggregation import Aggregation, Assessment
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.effects import (
    RUN_FAILED,
    STOPPED,
    Effect,
    Finish,
    PeerError,
    ProtocolError,
)
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
    Owner,
    Peer,
    Ready,
    Reset,
    Stop,
    Unban,
    WeightsRequest,
)
from manychar.protocol.outbox import Outbox
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.stall_report import StallReport
from manychar.protocol.status_report import StatusReport
from manychar.protocol.transitions import Table, rows

TICK = 0.1
RECORD_EVERY_STEPS = 100
WARN_EVERY = 1.0
STOP_WITHIN = 5.0
RENEWALS = 2


class ParameterServer:
    """The machine of the server. Times are seconds of any steady clock."""

    def __init__(self, run: RunSpec, *, now: float) -> None:
        self.run = run
        self.dimensions = run.dimensions
        limit = run.operation.steps or math.inf
        self.aggregation = Aggregation(run.definition, run.streams, run.state, limit=limit)
        self.membership = Membership(run.definition.shards, silence=run.operation.lease_timeout)
        self.outbox = Outbox(run.run, run.term, self.membership)
        self.lease_grants = LeaseGrants(self.aggregation, self.membership, self.outbox)
        self.admission = Admission(run, self.membership, self.lease_grants, self.outbox)
        self.conflicting_results = ConflictingResults(self.aggregation, self.admission, self.outbox)
        self.early_stopping = EarlyStopping(
            run.validation_losses,
            on=run.definition.validation > 0,
            every=run.operation.checkpoint_every,
            patience=run.operation.stop_when_no_better,
        )
        self.waiting = StallReport(
            self.aggregation, self.lease_grants, self.early_stopping, self.outbox, now=now
        )
        self.status_report = StatusReport(
            run,
            self.aggregation,
            self.membership,
            self.early_stopping,
            self.waiting,
            self.outbox,
            now=now,
        )
        self.lifecycle = Lifecycle(
            run=run,
            aggregation=self.aggregation,
            membership=self.membership,
            lease_grants=self.lease_grants,
            conflicting_results=self.conflicting_results,
            early_stopping=self.early_stopping,
            waiting=self.waiting,
            status_report=self.status_report,
            outbox=self.outbox,
        )
        self.counts = self.outbox.counts
        self._next_tick = now

    @property
    def state(self) -> TrainingState:
        """The state after the steps that were applied."""
        return self.aggregation.state

    def deadline(self) -> float | None:
        """When DeadlinePassed is due."""
        return None if self.lifecycle.phase is RunPhase.FINISHED else self._next_tick

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """Take an event. PeerError is a message that its sender may not send: then Malformed."""
        phase = self.lifecycle.phase
        row = _EVENTS.get((phase, type(event)))
        if row is None:
            raise ProtocolError(f"{type(event).__name__} to a server that is {phase.value}")
        row.handler(self, event, now)
        row.check(event, before=phase, after=self.lifecycle.phase)
        return self.outbox.collect()

    def is_blocked(self, peer: Peer, now: float, owner: Owner | None = None) -> bool:
        """Whether messages of this sender are to be dropped unread."""
        return self.admission.is_blocked(peer, owner, now)

    def _started(self, event: events.Started, now: float) -> None:
        self.lifecycle.begin(now)

    def _ignore(self, event: events.Event, now: float) -> None:
        """Do nothing: the run is finished."""

    def _received(self, event: events.Received, now: float) -> None:
        message = event.message
        if isinstance(message, Hello):
            self._connect(event, message, now)
        elif not isinstance(message, FromMember):
            raise PeerError(f"{type(message).__name__} to a server")
        elif self._is_overtaken(message, event.owner):
            self.lifecycle.finish(
                RUN_FAILED, f"a newer server (term {message.term}) has taken this run over"
            )
        else:
            self._received_from_member(event.peer, message, now)

    def _is_overtaken(self, message: FromMember, owner: Owner | None) -> bool:
        """Whether a peer has seen a newer server of this run; an observer's word is not enough."""
        looks_only = owner is not None and owner.role is KeyRole.OBSERVER
        newer = message.run == self.run.run and message.term > self.run.term
        return newer and not looks_only

    def _connect(self, event: events.Received, hello: Hello, now: float) -> None:
        peer = event.peer
        known = peer in self.membership.members
        member = self.admission.connect(peer, hello, event.owner, now)
        if member is not None and member.state is PeerState.OBSERVING:
            # A hello that is repeated again and again does not fill this server's queue.
            report = self.status_report
            for status in [report.figures(now)] if known else report.pages(now):
                self.outbox.send(peer, status)

    def _received_from_member(self, peer: Peer, message: FromMember, now: float) -> None:
        member = self.membership.members.get(peer)
        if member is None or (message.run, message.term) != (self.run.run, self.run.term):
            if not isinstance(message, Goodbye):  # a client that leaves does not read the answer
                self.outbox.count(Counter.MESSAGES_FROM_STALE_SESSION)
            self.outbox.send(peer, Reset(run=self.run.run, term=self.run.term))
            return
        member.heard_at = now
        if member.state is PeerState.SILENT:
            self.admission.comes_back(member, now)
        state = member.state
        row = _MESSAGES.get((state, type(message)))
        if row is None:
            raise PeerError(f"{type(message).__name__} from a peer that is {state.value}")
        row.handler(self, member, message, now)
        row.check(message, before=state, after=self.membership.state_of(peer))

    def _malformed(self, event: events.Malformed, now: float) -> None:
        self.admission.malformed(event.peer, event.owner, event.reason, now)

    def _peer_lost(self, event: events.PeerLost, now: float) -> None:
        if (member := self.membership.members.get(event.peer)) is not None:
            self.admission.leaves(member, "its connection is gone", now)

    def _key_revoked(self, event: events.KeyRevoked, now: float) -> None:
        self.outbox.count(Counter.MESSAGES_FROM_REVOKED_KEY)
        if (member := self.membership.members.get(event.peer)) is not None:
            self.admission.revoked(member, now)

    def _dropped(self, event: events.Dropped, now: float) -> None:
        self.outbox.count(event.counter, event.count)
        if event.reason:
            self.outbox.warn(event.reason)

    def _warned(self, event: events.Warned, now: float) -> None:
        self.outbox.warn(event.text)

    def _disk_waited(self, event: events.DiskWaited, now: float) -> None:
        step = self.state.step
        self.outbox.warn(f"step {step} waits for the disk: earlier checkpoints are being written")
        before, self.waiting.for_disk = self.waiting.for_disk, True
        self.status_report.show_pages(now)
        self.waiting.for_disk = before

    def _checkpoint_saved(self, event: events.CheckpointSaved, now: float) -> None:
        self.lifecycle.saved(event.step, now)

    def _checkpoint_outcome(self, event: events.CheckpointOutcome, now: float) -> None:
        """Go on with what waited for a checkpoint's validation loss."""
        match event:
            case events.CheckpointFailed(step, reason):
                self.lifecycle.save_failed(step, reason, now)
            case events.Validated(step, nats):
                self.lifecycle.validated(step, nats, now)
            case events.NotValidated(step, reason):
                self.lifecycle.not_validated(step, reason, now)
            case events.ValidationFailed(reason):
                self.lifecycle.validation_failed(reason, now)
        self.lifecycle.go_on(now)

    def _stop_requested(self, event: events.StopRequested, now: float) -> None:
        self.lifecycle.stop(Finish(event.code, event.reason), now=now, by=event.by)

    def _deadline_passed(self, event: events.DeadlinePassed, now: float) -> None:
        self._next_tick = now + TICK
        self.admission.check_silence(now)
        self.lease_grants.ask_again(now)
        self.waiting.tick(now)
        self.lifecycle.tick(now)
        self.status_report.tick(now)

    def _mailbox_empty(self, event: events.MailboxEmpty, now: float) -> None:
        """Do what nothing waits for."""
        self.aggregation.digest_accepted()

    def _suspended(self, event: events.Suspended, now: float) -> None:
        self.membership.suspended(event.seconds)

    def _stop_by_operator(self, member: Member, message: Stop, now: float) -> None:
        if self.admission.is_operator(member, "stop a run"):
            end = Finish(STOPPED, f"stopped by {member.name}")
            self.lifecycle.stop(end, now=now, by=now + STOP_WITHIN)

    def _send_weights(self, member: Member, message: WeightsRequest, now: float) -> None:
        self.outbox.send(member.peer, self.status_report.weights())

    def _gradient(self, member: Member, gradient: Gradient, now: float) -> None:
        if gradient.shard >= self.dimensions.shards:
            raise PeerError(f"a gradient of shard {gradient.shard}")
        what = f"step {gradient.step}, shard {gradient.shard}"
        match assessment := self.aggregation.assess(gradient):
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
                self.admission.from_wrong_state(member, gradient, now)
        member.tally.dropped += 1
        self.outbox.count(Counter(assessment.value))

    def _accept(self, member: Member, gradient: Gradient, now: float) -> None:
        self.membership.progressed(gradient.shard)
        self.aggregation.accept(gradient, member.names)
        self.status_report.delivers(member, now)
        self.lease_grants.counted(gradient.shard, member.peer)
        self.lifecycle.apply_complete_steps(now)

    def _computed(self, event: events.Computed, now: float) -> None:
        """Take this server's own result for a unit on which two workers differ."""
        back = self.conflicting_results.settle(event.shard, event.step, event.result, now)
        if back is not None:
            self.lifecycle.resume_before(back)
        self.lifecycle.settle()


def _admission(handler: Callable[..., None]) -> Callable[..., None]:
    return lambda server, *arguments: handler(server.admission, *arguments)


_UNKNOWN, _ADMITTED, _WORKING, _SILENT, _OBSERVING = PeerState
_MEMBERS = (_ADMITTED, _WORKING, _OBSERVING)

_MESSAGES: Table = {
    **rows((_ADMITTED,), (Ready,), _admission(Admission.ready), _WORKING, _UNKNOWN),
    **rows((_ADMITTED,), (Gradient,), _admission(Admission.not_ready)),
    **rows((_WORKING,), (Ready,), _admission(Admission.ready), _WORKING, _UNKNOWN),
    **rows((_WORKING,), (Gradient,), ParameterServer._gradient, _WORKING, _UNKNOWN),
    **rows((_OBSERVING,), (Stop,), ParameterServer._stop_by_operator),
    **rows((_OBSERVING,), (WeightsRequest,), ParameterServer._send_weights),
    **rows((_OBSERVING,), (Unban,), _admission(Admission.unban)),
    **rows(_MEMBERS, (Heartbeat,), _admission(Admission.heartbeat)),
    **rows(_MEMBERS, (Goodbye,), _admission(Admission.goodbye), _UNKNOWN),
}

_S = ParameterServer
_STARTING, _TRAINING, _STOPPING, _SAVING, _FINISHED = RunPhase
_RUNNING = (_TRAINING, _STOPPING, _SAVING)
_OUTCOMES = typing.get_args(events.CheckpointOutcome)

_EVENTS: Table = {
    **rows((_STARTING,), (events.Started,), _S._started, _TRAINING, _SAVING),
    **rows((_TRAINING,), (events.Received,), _S._received, *_RUNNING, _FINISHED),
    **rows((_STOPPING,), (events.Received,), _S._received, _STOPPING, _SAVING, _FINISHED),
    **rows((_SAVING,), (events.Received,), _S._received, _SAVING, _FINISHED),
    **rows((_TRAINING,), _OUTCOMES, _S._checkpoint_outcome, _TRAINING, _SAVING, _FINISHED),
    **rows((_STOPPING,), _OUTCOMES, _S._checkpoint_outcome, _STOPPING, _SAVING, _FINISHED),
    **rows((_SAVING,), _OUTCOMES, _S._checkpoint_outcome, _SAVING, _FINISHED),
    **rows((_TRAINING, _STOPPING), (events.CheckpointSaved,), _S._checkpoint_saved),
    **rows((_SAVING,), (events.CheckpointSaved,), _S._checkpoint_saved, _SAVING, _FINISHED),
    **rows((_TRAINING,), (events.StopRequested,), _S._stop_requested, _STOPPING, _SAVING),
    **rows((_STOPPING,), (events.StopRequested,), _S._stop_requested),
    **rows((_SAVING,), (events.StopRequested,), _S._stop_requested, _SAVING, _FINISHED),
    **rows((_TRAINING,), (events.Computed,), _S._computed, _TRAINING, _FINISHED),
    **rows((_STOPPING,), (events.Computed,), _S._computed, _STOPPING, _FINISHED),
    **rows((_SAVING,), (events.Computed,), _S._computed, _SAVING, _FINISHED),
    **rows((_STOPPING,), (events.DeadlinePassed,), _S._deadline_passed, _STOPPING, _SAVING),
    **rows((_TRAINING, _SAVING), (events.DeadlinePassed,), _S._deadline_passed),
    **rows(_RUNNING, (events.Malformed,), _S._malformed),
    **rows(_RUNNING, (events.PeerLost,), _S._peer_lost),
    **rows(_RUNNING, (events.KeyRevoked,), _S._key_revoked),
    **rows(_RUNNING, (events.Dropped,), _S._dropped),
    **rows(_RUNNING, (events.Warned,), _S._warned),
    **rows(_RUNNING, (events.DiskWaited,), _S._disk_waited),
    **rows(_RUNNING, (events.MailboxEmpty,), _S._mailbox_empty),
    **rows(_RUNNING, (events.Suspended,), _S._suspended),
    **rows((_FINISHED,), typing.get_args(events.Event), _S._ignore),
}
