"""The phases of a run, what each step leads to, and what must be done before it is finished.

STARTING ──Started──▶ TRAINING (a run that is done already: SAVING)
TRAINING ──the last step, or early stopping──▶ SAVING
TRAINING ──a stop──▶ STOPPING ──the step is applied, or no time left──▶ SAVING
SAVING ──the last checkpoint is saved and validated──▶ FINISHED
any ──a failure, a wrong result in the weights, a newer server──▶ FINISHED
"""

import enum
import math

from manychar.numerics.clipped_adagrad import NotFiniteError
from manychar.protocol import effects, events
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.effects import RUN_FAILED, Finish, Level
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.messages import Done, Reset, one_line
from manychar.protocol.server_part import ServerPart, Shared
from manychar.protocol.status_report import StatusReport

RECORD_EVERY_STEPS = 100


class RunPhase(enum.StrEnum):
    """The phase of the run."""

    STARTING = "starting"
    TRAINING = "training"
    STOPPING = "stopping"
    SAVING = "saving"
    FINISHED = "finished"


# Many methods: each end of the run is one, and each fact about a checkpoint; they share a phase.
class Lifecycle(ServerPart):
    """The run's phase."""

    def __init__(
        self,
        shared: Shared,
        lease_grants: LeaseGrants,
        conflicting_results: ConflictingResults,
        status_report: StatusReport,
    ) -> None:
        super().__init__(shared)
        self.phase = RunPhase.STARTING
        self.requested_stop: Finish | None = None
        self._lease_grants = lease_grants
        self._conflicting_results = conflicting_results
        self._status_report = status_report
        self._finish: Finish | None = None
        self._saved_step = -1
        self._recorded_step = self._step
        self._saved_at = math.inf
        self._stop_by = math.inf

    def started(self, event: events.Started, now: float) -> None:
        """Start with the checkpoints that are not validated; a run that is done is saved."""
        self.phase = RunPhase.TRAINING
        self._saved_at = now
        for step in self._spec.unvalidated:
            self._early_stopping.expect(step)
            self._validate(step)
        if self._aggregation.closed:
            self.save(now)

    def go_on(self, now: float) -> None:
        """Do what the last event made possible: stop early, apply the open step, finish."""
        if self.phase is RunPhase.TRAINING and self._early_stopping.ends_at(self._step):
            self.save(now)
        elif (
            self._aggregation.complete
            and self.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
            and not self._aggregation.closed
            and not self._conflicting_results.not_finite
            and not self._early_stopping.waits(self._step)
        ):
            self._apply_step(now)
        self._finish_if_done()

    def _apply_step(self, now: float) -> None:
        try:
            self._aggregation.apply()
        except NotFiniteError:
            self._not_finite()
            return
        step, state, operation = self._step, self._aggregation.state, self._spec.operation
        stops = self.phase is RunPhase.STOPPING or self._aggregation.closed
        ends = stops or self._early_stopping.ends_at(step)
        if not ends:
            self._lease_grants.broadcast(now)  # before all else: workers are waiting for it
        self._status_report.applied(now)
        self._status_report.note_loss()
        self._outbox.add(effects.Append(step, self._aggregation.loss))
        if _is_due(step, RECORD_EVERY_STEPS):
            self._record(now)
        if ends:
            self.save(now)
            return
        regular, minutes = _is_due(step, operation.checkpoint_every), operation.checkpoint_minutes
        if regular:
            self._early_stopping.expect(step)
        if regular or (minutes and now >= self._saved_at + 60 * minutes):
            self._saved_at = now
            self._outbox.add(effects.Save(state, for_recovery=not regular))
        if _is_due(step, operation.sample_every):
            self._status_report.show(now)
            self._outbox.show(self._status_report.weights())

    def _record(self, now: float) -> None:
        """Record the figures of the newest step, once; of none that an earlier server applied."""
        if self._step > self._recorded_step:
            self._recorded_step = self._step
            self._outbox.add(effects.RecordMetrics(self._status_report.figures(now)))

    def _not_finite(self) -> None:
        """Compute again what is not finite, to know whether its sender was wrong."""
        step, found = self._step, self._aggregation.not_finite()
        for sender, node in found:
            self._conflicting_results.begin(sender, step, node, {}, finite=False)
        if not found:
            reason = f"the sum of the gradients of step {step:,} is not finite: {self._new_run}"
            self.finish(RUN_FAILED, reason, resumable=False)

    # The end.

    def stop(self, event: events.StopRequested, now: float) -> None:
        """End with the step that is being computed, at time `event.by` without it."""
        finish = Finish(event.code, event.reason)
        self.requested_stop = self.requested_stop or finish
        if self.phase is RunPhase.TRAINING:
            self.phase = RunPhase.STOPPING
            self._finish = finish
            self._stop_by = event.by
            if not self._membership.workers() or self._early_stopping.waits(self._step):
                self.save(now)

    def tick(self, now: float) -> None:
        """Settle conflicts, and stop without the open step where it cannot be completed."""
        self._settle(now)
        in_vain = now >= self._stop_by or not self._membership.workers()
        if self.phase is RunPhase.STOPPING and in_vain:
            self.save(now)

    def save(self, now: float) -> None:
        """Apply nothing more, and write the last checkpoint."""
        if self._finish is None and self._early_stopping.ends_at(self._step):
            self._finish = Finish(0, self._early_stopping.reason(self._step))
        self.phase = RunPhase.SAVING
        self._record(now)
        self._aggregation.close()
        self._status_report.waits_for_disk = True
        self._status_report.show(now, pages=True)
        self._outbox.show(self._status_report.weights())
        if self.requested_stop is None:
            self._early_stopping.expect(self._step)
        self._outbox.add(effects.Save(self._aggregation.state))

    def _finish_if_done(self) -> None:
        if self.phase is not RunPhase.SAVING:
            return
        validated = self.requested_stop or not self._early_stopping.awaited
        if self._saved_step == self._step and validated and not self._conflicting_results.open:
            end = self._finish or Finish(0, f"finished at step {self._step:,}")
            summary = "" if end.code else self._early_stopping.summary
            reasons = end.reason, summary, self._status_report.divergence
            diverges = bool(self._status_report.divergence)
            self.finish(end.code, "; ".join(filter(None, reasons)), resumable=not diverges)

    def finish(self, code: int, reason: str, *, resumable: bool = True) -> None:
        """Finish now, and tell every peer. Nothing follows."""
        done = Done(**self._spec.run_and_term, code=code, reason=one_line(reason))
        self._outbox.send_to_all(done)
        self._outbox.add(Finish(code, reason, resumable))
        self._outbox.close()
        self.phase = RunPhase.FINISHED

    def computed(self, event: events.Computed, now: float) -> None:
        self._conflicting_results.computed(event)
        self._settle(now)

    def _settle(self, now: float) -> None:
        for conflict in self._conflicting_results.settled(now):
            if reason := self._conflicting_results.why_it_ends_the_run(conflict):
                self.finish(RUN_FAILED, reason, resumable=conflict.finite)
            elif (step := self._conflicting_results.settle(conflict, now)) is not None:
                self.resume_before(step)

    def resume_before(self, step: int) -> None:
        """End this term, and have every peer join the next one. Nothing follows.

        Peers are told once what has to be remembered is on disk.
        """
        self._outbox.add(effects.ResumeBefore(step))
        self._outbox.send_to_all(Reset(**self._spec.run_and_term))
        self._outbox.close()
        self.phase = RunPhase.FINISHED

    # Checkpoints.

    def checkpoint_written(self, event: events.CheckpointWritten, now: float) -> None:
        if event.failure:
            what = f"the checkpoint of step {event.step:,} could not be written: {event.failure}"
            self.finish(RUN_FAILED, what)
            return
        self._status_report.saved(event.step, now)
        if not event.for_recovery:
            self._validate(event.step)
            self._saved_step = max(self._saved_step, event.step)

    def _validate(self, step: int) -> None:
        if self._early_stopping.must_ask(step):
            self._outbox.add(effects.Validate(step))

    def validated(self, event: events.Validated, now: float) -> None:
        """Note a validation loss; go on without it, unless the end of the run depends on it."""
        if not event.failure:
            self._early_stopping.record(event.step, event.nats)
            self._status_report.show(now)
            return
        what = f"the checkpoint of step {event.step:,}"
        if self._early_stopping.depends_on(event.step):
            self.validation_failed(events.ValidationFailed(f"{what}: {event.failure}"), now)
            return
        self._early_stopping.awaited.discard(event.step)
        self._outbox.count(Counter.CHECKPOINTS_NOT_VALIDATED)
        self._outbox.warn(f"{what} is not validated: {event.failure}")

    def validation_failed(self, event: events.ValidationFailed, now: float) -> None:
        """Go on without validation, unless the end of the run depends on it."""
        text = f"checkpoints are not validated any more: {event.reason}"
        self._outbox.log(text, Level.ERROR)
        self._early_stopping.end()
        if self._early_stopping.decides and self.phase is RunPhase.TRAINING:
            self._finish = Finish(RUN_FAILED, f"early stopping cannot decide: {event.reason}")
            self.save(now)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
