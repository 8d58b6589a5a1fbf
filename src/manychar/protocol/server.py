"""ParameterServer: hands each event and message to the part of the server that handles it.

`lifecycle` has the phases of the run. The states of a peer (membership):

    UNKNOWN ──Hello──▶ ADMITTED ──Ready──▶ WORKING ⇄ SILENT
    UNKNOWN ──Hello of an observer──▶ OBSERVING

`_event_rows` names what handles an event in each phase, `_message_rows` which messages a peer may
send in its state; another one is a PeerError. Hello is allowed in each state: it is a new
connection. A silent worker is working again before its message is handled. A message from an
unknown peer, or of another term, is answered with Reset, so that a peer's memory of a former server
can never be mistaken for this one's.

Once FINISHED, nothing changes the outcome: every event is ignored.
"""

import math
from collections.abc import Callable

from manychar.numerics.training_step import TrainingState
from manychar.protocol import events, messages
from manychar.protocol.admission import Admission
from manychar.protocol.aggregation import Aggregation
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.effects import RUN_FAILED, STOPPED, Effect
from manychar.protocol.events import PeerError, ProtocolError, Table, rows
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.lifecycle import Lifecycle, RunPhase
from manychar.protocol.member import Member, PeerState
from manychar.protocol.membership import Membership
from manychar.protocol.messages import FromMember, KeyRole, Owner, Peer, Stop, UnitResult
from manychar.protocol.outbox import Outbox
from manychar.protocol.packed_header import Expected
from manychar.protocol.range_cut import count_of, shards_named
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server_part import Shared
from manychar.protocol.status_report import StatusReport

TICK = 0.1
STOP_WITHIN = 5.0

_UNKNOWN, _ADMITTED, _WORKING, _SILENT, _OBSERVING = PeerState
_STARTING, _TRAINING, _STOPPING, _SAVING, _FINISHED = RunPhase
_MEMBERS = (_ADMITTED, _WORKING, _OBSERVING)
_RUNNING = (_TRAINING, _STOPPING, _SAVING)
_ENDING = (_STOPPING, _SAVING, _FINISHED)


# Many attributes: the parts, and what drives them.
class ParameterServer:
    """The machine of the server. Times are seconds of any steady clock."""

    aggregation_class: type[Aggregation] = Aggregation

    def __init__(self, spec: RunSpec, *, now: float) -> None:
        self.spec = spec
        self.aggregation = self.aggregation_class(
            spec.definition, spec.corpus, spec.state, limit=spec.operation.steps or math.inf
        )
        self.membership = Membership(spec.definition.shards, silence=spec.operation.lease_timeout)
        self.early_stopping = EarlyStopping(spec.validation_losses, spec.definition, spec.operation)
        self.outbox = Outbox(self.membership)
        self.counts = self.outbox.counts
        shared = Shared(spec, self.aggregation, self.membership, self.early_stopping, self.outbox)
        self.lease_grants = LeaseGrants(shared)
        self.admission = Admission(shared, self.lease_grants)
        self.conflicting_results = ConflictingResults(shared, self.admission)
        self.status_report = StatusReport(shared, now=now)
        self.lifecycle = Lifecycle(
            shared, self.lease_grants, self.conflicting_results, self.status_report
        )
        self._rows = self._event_rows() | self._message_rows()
        self._next_tick = self._delivered_at = now

    @property
    def dimensions(self) -> Dimensions:
        return self.spec.dimensions

    @property
    def state(self) -> TrainingState:
        return self.aggregation.state

    @property
    def expected_results(self) -> Expected:
        return self.lease_grants.next_units.expected

    def deadline(self) -> float | None:
        return None if self.lifecycle.phase is _FINISHED else self._next_tick

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """Handle an event. PeerError: its sender may not send this message; hand in Malformed."""
        phase = self.lifecycle.phase
        if phase is _FINISHED:
            return []
        row = self._rows.get((phase, type(event)))
        if row is None:
            raise ProtocolError(f"{type(event).__name__} to a server that is {phase.value}")
        row.handler(event, now)
        self.lifecycle.go_on(now)
        if row.next_states or self.lifecycle.phase is not phase:
            row.check(event, before=phase, after=self.lifecycle.phase)
        return self.outbox.collect()

    # Events that concern several parts.

    def _received(self, event: events.Received, now: float) -> None:
        message = event.message
        if isinstance(message, messages.Hello):
            self._connect(event, message, now)
        elif not isinstance(message, FromMember):
            raise PeerError(f"{type(message).__name__} to a server")
        elif message.term > self.spec.term and self._is_overtaken(message, event.owner):
            reason = (
                f"a worker has seen term {message.term} of this run, and this server has term"
                f" {self.spec.term}: another server took the run over, or this directory is an"
                " older copy of it; to go on with a copy, stop all workers first"
            )
            self.lifecycle.finish(RUN_FAILED, reason, resumable=False)
        else:
            self._received_from_member(event.peer, message, now)

    def _is_overtaken(self, message: FromMember, owner: Owner | None) -> bool:
        """Whether a peer of a higher term is of this run; an observer's term is ignored."""
        observes = owner is not None and owner.role is KeyRole.OBSERVER
        return message.run_id == self.spec.run_id and not observes

    def _suspended(self, event: events.Suspended, now: float) -> None:
        """Do not count the time in which this process was stopped: as silence, or as work."""
        self._delivered_at += event.seconds
        self.membership.suspended(event.seconds)
        self.status_report.suspended(event.seconds)

    def _connect(self, event: events.Received, hello: messages.Hello, now: float) -> None:
        known = event.peer in self.membership.members
        member = self.admission.connect(event.peer, hello, event.owner, now)
        if member is not None and member.state is _OBSERVING:
            # A hello that is repeated again and again does not fill this server's queue.
            report = self.status_report
            for status in [report.figures(now)] if known else report.pages(now):
                self.outbox.send(event.peer, status)

    def _received_from_member(self, peer: Peer, message: FromMember, now: float) -> None:
        member = self.membership.members.get(peer)
        if member is None or message.run_and_term != self.spec.run_and_term:
            if not isinstance(message, messages.Goodbye):  # its sender has closed the connection
                self.outbox.count(Counter.MESSAGES_FROM_STALE_SESSION)
            self.outbox.send(peer, messages.Reset(**self.spec.run_and_term))
            return
        member.heard_at = now
        if member.state is _SILENT:
            self.admission.end_silence(member, now)
        state = member.state
        row = self._rows.get((state, type(message)))
        if row is None:
            raise PeerError(f"{type(message).__name__} from a peer that is {state.value}")
        row.handler(member, message, now)
        row.check(message, before=state, after=self.membership.state_of(peer))

    def _deadline_passed(self, event: events.DeadlinePassed, now: float) -> None:
        self._next_tick = now + TICK
        self.admission.check_silence(now)
        self.lease_grants.ask_again(now)
        self.status_report.report_stall(now)
        self.lifecycle.tick(now)
        self.status_report.tick(now)

    def _mailbox_empty(self, event: events.MailboxEmpty, now: float) -> None:
        """Do what no step has to wait for: its weights are on their way."""
        self.aggregation.compute_digests()
        self.lease_grants.next_units.make()

    # Messages that concern several parts.

    def _stop_by_operator(self, member: Member, message: Stop, now: float) -> None:
        if self.admission.is_operator(member, "stop a run"):
            reason = f"the server was stopped by {member.name}"
            self.lifecycle.stop(events.StopRequested(STOPPED, reason, now + STOP_WITHIN), now)

    def _unit_result(self, member: Member, result: UnitResult, now: float) -> None:
        seconds = self._note_seconds(member, result)
        dropped = self.aggregation.assess(result)
        match dropped:
            case None:
                self._accept(member, result, seconds, now)
                return
            case Counter.UNITS_NOT_OPEN if self.lifecycle.phase is not _SAVING:
                what = f"step {result.step:,}, {shards_named(result.shards)}"
                raise PeerError(f"a result of {what}, which is not open yet")
            case Counter.UNITS_CONFLICTING | Counter.UNITS_NOT_FINITE:
                self._dispute(member, result, finite=dropped is not Counter.UNITS_NOT_FINITE)
            case Counter.UNITS_REPEATED:
                member.renewals = 0  # it was computed from the right state
            case Counter.UNITS_FROM_WRONG_STATE:
                self.admission.from_wrong_state(member, result, now)
        member.tally.delivered(0, seconds, now)
        member.tally.dropped += 1
        self.outbox.count(dropped)

    def _note_seconds(self, member: Member, result: UnitResult) -> float:
        """Note a worker's speed, and return for how long it computed.

        A unit that comes again says nothing new, nor does one whose worker may have been stopped
        together with this server, as by Ctrl-Z.
        """
        unit = result.lease, result.step, result.shards
        lease = self.membership.leases.get(result.lease)
        if unit == member.measured or (lease is not None and lease.suspended):
            return 0.0
        member.measured = unit
        member.speed.note(result.seconds)
        return result.seconds * count_of(result.shards) / max(1, member.workers)

    def _accept(self, member: Member, result: UnitResult, seconds: float, now: float) -> None:
        accepted = self.aggregation.accept(result, member.identities)
        self.membership.accepted(accepted, member.peer, result.lease, result.step)
        member.tally.delivered(len(accepted), seconds, now)
        if self.aggregation.complete and len(self.membership.leases) > 1:
            member.tally.straggling += now - max(self._delivered_at, member.tally.since)
        self._delivered_at = now

    def _dispute(self, member: Member, result: UnitResult, *, finite: bool) -> None:
        what = f"step {result.step:,}, {shards_named(result.shards)}"
        problem = "differs" if finite else "is not finite"
        self.outbox.warn(f"what {member.name} sent for {what} {problem}: computed again")
        claims = self.aggregation.digests_of(result)
        self.conflicting_results.begin(
            member.identities, result.step, result.shards, claims, finite=finite
        )

    # Tables of transitions: states, event or message, handler, the states that may follow.

    def _event_rows(self) -> Table:
        lifecycle, admission = self.lifecycle, self.admission
        return {
            **rows((_STARTING,), (events.Started,), lifecycle.started, _TRAINING, _SAVING),
            **rows((_TRAINING,), (events.Received,), self._received, *_RUNNING, _FINISHED),
            **rows((_STOPPING,), (events.Received,), self._received, *_ENDING),
            **rows((_SAVING,), (events.Received,), self._received, _SAVING, _FINISHED),
            # A stop finishes at once where the checkpoint of this step is on disk already.
            **rows((_TRAINING,), (events.StopRequested,), lifecycle.stop, *_ENDING),
            **rows((_STOPPING,), (events.StopRequested,), lifecycle.stop),
            **rows((_SAVING,), (events.StopRequested,), lifecycle.stop, _SAVING, _FINISHED),
            **_may_end(events.DeadlinePassed, self._deadline_passed),
            **_may_end(events.Computed, lifecycle.computed),
            **_may_end(events.CheckpointWritten, lifecycle.checkpoint_written),
            **_may_end(events.Validated, lifecycle.validated),
            **_may_end(events.ValidationFailed, lifecycle.validation_failed),
            **rows(_RUNNING, (events.Malformed,), admission.malformed),
            **rows(_RUNNING, (events.PeerLost,), admission.peer_lost),
            **rows(_RUNNING, (events.KeyRevoked,), admission.key_revoked),
            **rows(_RUNNING, (events.Dropped,), self.outbox.dropped),
            **rows(_RUNNING, (events.DiskWaited,), self.status_report.disk_waited),
            **rows(_RUNNING, (events.MailboxEmpty,), self._mailbox_empty),
            **rows(_RUNNING, (events.Suspended,), self._suspended),
        }

    def _message_rows(self) -> Table:
        admission = self.admission
        return {
            **rows((_ADMITTED,), (messages.Ready,), admission.ready, _WORKING, _UNKNOWN),
            **rows((_ADMITTED,), (UnitResult,), admission.not_ready),
            **rows((_WORKING,), (messages.Ready,), admission.ready, _WORKING, _UNKNOWN),
            **rows((_WORKING,), (UnitResult,), self._unit_result, _WORKING, _UNKNOWN),
            **rows((_ADMITTED, _WORKING), (messages.Status,), self.status_report.note_below),
            **rows((_WORKING,), (messages.Blame,), self.conflicting_results.blamed),
            **rows((_OBSERVING,), (Stop,), self._stop_by_operator),
            **rows((_OBSERVING,), (messages.WeightsRequest,), self.status_report.send_weights),
            **rows((_OBSERVING,), (messages.Unban,), admission.unban),
            **rows(_MEMBERS, (messages.Heartbeat,), admission.heartbeat),
            **rows(_MEMBERS, (messages.Goodbye,), admission.goodbye, _UNKNOWN),
        }


def _may_end(event: type[events.Event], handler: Callable[..., None]) -> Table:
    """Return the rows of an event that may end the run in each of its phases."""
    return {
        **rows((_TRAINING,), (event,), handler, _TRAINING, _SAVING, _FINISHED),
        **rows((_STOPPING,), (event,), handler, *_ENDING),
        **rows((_SAVING,), (event,), handler, _SAVING, _FINISHED),
    }
