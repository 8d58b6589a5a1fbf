"""ParameterServer: grants shards, takes gradients, averages, clips, applies Adagrad, broadcasts.

The run (lifecycle):  STARTING ──Started──▶ TRAINING ──the last step, or no better──▶ SAVING
                      TRAINING ──StopRequested, or Stop──▶ STOPPING ──the step's end──▶ SAVING
                      SAVING ──saved and validated──▶ FINISHED; a failure leads there from anywhere

Each peer (membership):  UNKNOWN ──Hello──▶ ADMITTED ──Ready──▶ WORKING ⇄ SILENT
                         UNKNOWN ──Hello of an observer──▶ OBSERVING

`_EVENTS` at the end names what each event may do to the run, `_MESSAGES` which messages a peer may
send in its state, and where they lead; another one is a PeerError. Hello is taken in each state: it
is a new connection. A silent worker is working again before its message is handled. A message from
an unknown peer, or of another term, is answered with Reset, so that a peer's memory of a former
server can never be mistaken for this one's.

Once FINISHED, nothing changes the outcome: every event is ignored.
"""

import math
from collections.abc import Callable

from manychar.numerics.training_step import TrainingState
from manychar.protocol import events, messages
from manychar.protocol.admission import Admission
from manychar.protocol.aggregation import Aggregation, Assessment
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.effects import RUN_FAILED, STOPPED, Effect, Finish, PeerError
from manychar.protocol.events import ProtocolError, Table, rows
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.lifecycle import Lifecycle, RunPhase
from manychar.protocol.membership import Member, Membership, PeerState
from manychar.protocol.messages import FromMember, Gradient, KeyRole, Owner, Peer, Stop
from manychar.protocol.outbox import Outbox
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server_part import Shared
from manychar.protocol.status_report import StatusReport

TICK = 0.1
STOP_WITHIN = 5.0


# 22 methods: handlers of the tables; what they share is in the parts.
class ParameterServer:
    """The machine of the server. Times are seconds of any steady clock."""

    def __init__(self, run: RunSpec, *, now: float) -> None:
        self.run = run
        self.aggregation = Aggregation(
            run.definition, run.streams, run.state, limit=run.operation.steps or math.inf
        )
        self.membership = Membership(run.definition.shards, silence=run.operation.lease_timeout)
        self.early_stopping = EarlyStopping(
            run.validation_losses,
            on=run.definition.validation > 0,
            every=run.operation.checkpoint_every,
            patience=run.operation.stop_when_no_better,
        )
        self.outbox = Outbox(run, self.membership)
        self.counts = self.outbox.counts
        shared = Shared(run, self.aggregation, self.membership, self.early_stopping, self.outbox)
        self.lease_grants = LeaseGrants(shared)
        self.admission = Admission(shared, self.lease_grants)
        self.conflicting_results = ConflictingResults(shared, self.admission)
        self.status_report = StatusReport(shared, self.lease_grants, now=now)
        self.lifecycle = Lifecycle(
            shared, self.lease_grants, self.conflicting_results, self.status_report
        )
        self._next_tick = now

    @property
    def dimensions(self) -> messages.Dimensions:
        """The run's dimensions."""
        return self.run.dimensions

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
        if phase is RunPhase.FINISHED:
            return []
        row = _EVENTS.get((phase, type(event)))
        if row is None:
            raise ProtocolError(f"{type(event).__name__} to a server that is {phase.value}")
        row.handler(self, event, now)
        row.check(event, before=phase, after=self.lifecycle.phase)
        return self.outbox.collect()

    def is_blocked(self, peer: Peer, now: float, owner: Owner | None = None) -> bool:
        """Whether messages of this sender are to be dropped unread."""
        return self.admission.is_blocked(peer, owner, now)

    # Events.

    def _started(self, event: events.Started, now: float) -> None:
        self.lifecycle.begin(now)

    def _received(self, event: events.Received, now: float) -> None:
        message = event.message
        if isinstance(message, messages.Hello):
            self._connect(event, message, now)
        elif not isinstance(message, FromMember):
            raise PeerError(f"{type(message).__name__} to a server")
        elif self._is_overtaken(message, event.owner):
            reason = f"a newer server (term {message.term}) has taken this run over"
            self.lifecycle.finish(RUN_FAILED, reason)
        else:
            self._received_from_member(event.peer, message, now)

    def _is_overtaken(self, message: FromMember, owner: Owner | None) -> bool:
        """Whether a peer has seen a newer server of this run; an observer is not believed."""
        observes = owner is not None and owner.role is KeyRole.OBSERVER
        newer = message.run == self.run.run and message.term > self.run.term
        return newer and not observes

    def _connect(self, event: events.Received, hello: messages.Hello, now: float) -> None:
        known = event.peer in self.membership.members
        member = self.admission.connect(event.peer, hello, event.owner, now)
        if member is not None and member.state is PeerState.OBSERVING:
            # A hello that is repeated again and again does not fill this server's queue.
            report = self.status_report
            for status in [report.figures(now)] if known else report.pages(now):
                self.outbox.send(event.peer, status)

    def _received_from_member(self, peer: Peer, message: FromMember, now: float) -> None:
        member = self.membership.members.get(peer)
        if member is None or (message.run, message.term) != (self.run.run, self.run.term):
            if not isinstance(message, messages.Goodbye):  # nobody reads the answer to that
                self.outbox.count(Counter.MESSAGES_FROM_STALE_SESSION)
            self.outbox.send(peer, messages.Reset(run=self.run.run, term=self.run.term))
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

    def _dropped(self, event: events.Dropped, now: float) -> None:
        self.outbox.count(event.counter, event.count)
        if event.reason:
            self.outbox.warn(event.reason)

    def _disk_waited(self, event: events.DiskWaited, now: float) -> None:
        step, report = self.state.step, self.status_report
        self.outbox.warn(f"step {step} waits for the disk: earlier checkpoints are being written")
        before, report.waits_for_disk = report.waits_for_disk, True
        report.show(now, pages=True)
        report.waits_for_disk = before

    def _stop_requested(self, event: events.StopRequested, now: float) -> None:
        self.lifecycle.stop(Finish(event.code, event.reason), now=now, by=event.by)

    def _deadline_passed(self, event: events.DeadlinePassed, now: float) -> None:
        self._next_tick = now + TICK
        self.admission.check_silence(now)
        self.lease_grants.ask_again(now)
        self.status_report.report_stall(now)
        self.lifecycle.tick(now)
        self.status_report.tick(now)

    def _mailbox_empty(self, event: events.MailboxEmpty, now: float) -> None:
        self.aggregation.digest_accepted()  # nothing waits for that

    def _suspended(self, event: events.Suspended, now: float) -> None:
        self.membership.suspended(event.seconds)

    def _computed(self, event: events.Computed, now: float) -> None:
        """Take this server's own result for a unit on which two workers differ."""
        resume = self.conflicting_results.settle(event, now)
        if resume is not None:
            self.lifecycle.resume_before(resume)
        self.lifecycle.settle()

    # Messages.

    def _stop_by_operator(self, member: Member, message: Stop, now: float) -> None:
        if self.admission.is_operator(member, "stop a run"):
            end = Finish(STOPPED, f"stopped by {member.name}")
            self.lifecycle.stop(end, now=now, by=now + STOP_WITHIN)

    def _send_weights(self, member: Member, message: messages.WeightsRequest, now: float) -> None:
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
        member.tally.accepted += 1
        member.tally.delivered_at = now
        self.lease_grants.accepted(gradient.shard, member.peer)
        self.lifecycle.apply_complete_steps(now)


Handler = Callable[..., None]


def _admission(handler: Handler) -> Handler:
    return lambda server, *arguments: handler(server.admission, *arguments)


def _outcome(handler: Handler) -> Handler:
    """Return a handler of what became of a checkpoint: the run goes on with what waited for it."""

    def handle(server: ParameterServer, event: events.Event, now: float) -> None:
        handler(server.lifecycle, event, now)
        server.lifecycle.go_on(now)

    return handle


_UNKNOWN, _ADMITTED, _WORKING, _SILENT, _OBSERVING = PeerState
_MEMBERS = (_ADMITTED, _WORKING, _OBSERVING)

_MESSAGES: Table = {
    **rows((_ADMITTED,), (messages.Ready,), _admission(Admission.ready), _WORKING, _UNKNOWN),
    **rows((_ADMITTED,), (Gradient,), _admission(Admission.not_ready)),
    **rows((_WORKING,), (messages.Ready,), _admission(Admission.ready), _WORKING, _UNKNOWN),
    **rows((_WORKING,), (Gradient,), ParameterServer._gradient, _WORKING, _UNKNOWN),
    **rows((_OBSERVING,), (Stop,), ParameterServer._stop_by_operator),
    **rows((_OBSERVING,), (messages.WeightsRequest,), ParameterServer._send_weights),
    **rows((_OBSERVING,), (messages.Unban,), _admission(Admission.unban)),
    **rows(_MEMBERS, (messages.Heartbeat,), _admission(Admission.heartbeat)),
    **rows(_MEMBERS, (messages.Goodbye,), _admission(Admission.goodbye), _UNKNOWN),
}

_S = ParameterServer
_STARTING, _TRAINING, _STOPPING, _SAVING, _FINISHED = RunPhase
_RUNNING = (_TRAINING, _STOPPING, _SAVING)
_OUTCOMES: dict[type[events.Event], Handler] = {
    events.CheckpointWritten: Lifecycle.checkpoint_written,
    events.Validated: Lifecycle.validated,
    events.NotValidated: Lifecycle.not_validated,
    events.ValidationFailed: Lifecycle.validation_failed,
}

_EVENTS: Table = {
    **rows((_STARTING,), (events.Started,), _S._started, _TRAINING, _SAVING),
    **rows((_TRAINING,), (events.Received,), _S._received, *_RUNNING, _FINISHED),
    **rows((_STOPPING,), (events.Received,), _S._received, _STOPPING, _SAVING, _FINISHED),
    **rows((_SAVING,), (events.Received,), _S._received, _SAVING, _FINISHED),
    **rows((_TRAINING,), (events.StopRequested,), _S._stop_requested, _STOPPING, _SAVING),
    **rows((_STOPPING,), (events.StopRequested,), _S._stop_requested),
    **rows((_SAVING,), (events.StopRequested,), _S._stop_requested, _SAVING, _FINISHED),
    **rows((_TRAINING,), (events.Computed,), _S._computed, _TRAINING, _FINISHED),
    **rows((_STOPPING,), (events.Computed,), _S._computed, _STOPPING, _FINISHED),
    **rows((_SAVING,), (events.Computed,), _S._computed, _SAVING, _FINISHED),
    **rows((_STOPPING,), (events.DeadlinePassed,), _S._deadline_passed, _STOPPING, _SAVING),
    **rows((_TRAINING, _SAVING), (events.DeadlinePassed,), _S._deadline_passed),
    **rows(_RUNNING, (events.Malformed,), _admission(Admission.malformed)),
    **rows(_RUNNING, (events.PeerLost,), _admission(Admission.peer_lost)),
    **rows(_RUNNING, (events.KeyRevoked,), _admission(Admission.key_revoked)),
    **rows(_RUNNING, (events.Dropped,), _S._dropped),
    **rows(_RUNNING, (events.DiskWaited,), _S._disk_waited),
    **rows(_RUNNING, (events.MailboxEmpty,), _S._mailbox_empty),
    **rows(_RUNNING, (events.Suspended,), _S._suspended),
}
for _kind, _handler in _OUTCOMES.items():
    _EVENTS |= rows((_TRAINING,), (_kind,), _outcome(_handler), _TRAINING, _SAVING, _FINISHED)
    _EVENTS |= rows((_STOPPING,), (_kind,), _outcome(_handler), _STOPPING, _SAVING, _FINISHED)
    _EVENTS |= rows((_SAVING,), (_kind,), _outcome(_handler), _SAVING, _FINISHED)
