"""How a run ends: its phases, and what must be on disk and validated before it is finished.

TRAINING ──the last step, or early stopping──▶ SAVING ──saved, validated──▶ FINISHED
TRAINING ──stop──▶ STOPPING ──the step is applied, or no time left──▶ SAVING
any ──a failure, a wrong result in the weights, a newer server──▶ FINISHED
"""

import enum
import math

from manychar.protocol import effects, events
from manychar.protocol.aggregation import as_frame
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.effects import RUN_FAILED, Finish
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.messages import Done, Level, Reset, one_line
from manychar.protocol.server_part import ServerPart, Shared
from manychar.protocol.status_report import StatusReport

RECORD_EVERY_STEPS = 100


class RunPhase(enum.Enum):
    """The phase of the run."""

    STARTING = "starting"
    TRAINING = "training"
    STOPPING = "stopping"
    SAVING = "saving"
    FINISHED = "finished"


# 22 methods: each end of the run is one, and each fact about a checkpoint, and they share a phase.
class Lifecycle(ServerPart):
    """The run's phase, what each step leads to, and what is still awaited.

    `asked` is what a stop asked for.
    """

    def __init__(
        self,
        shared: Shared,
        lease_grants: LeaseGrants,
        conflicting_results: ConflictingResults,
        status_report: StatusReport,
    ) -> None:
        super().__init__(shared)
        self.phase = RunPhase.STARTING
        self.asked: Finish | None = None
        self._lease_grants = lease_grants
        self._conflicting_results = conflicting_results
        self._status_report = status_report
        self._finish: Finish | None = None
        self._saved_step = -1
        self._stop_by = math.inf

    @property
    def _failed(self) -> bool:
        return self._finish is not None and self._finish.code != 0

    @property
    def _step(self) -> int:
        return self._aggregation.state.step

    def begin(self, now: float) -> None:
        """Start with the checkpoints that are not validated; a finished run ends at once."""
        self.phase = RunPhase.TRAINING
        for step in self._run.unvalidated:
            self._early_stopping.expect(step)
            self._have_validated(step)
        if self._aggregation.closed:
            self.save(now)
        else:
            self._stop_where_no_better(now)

    # Steps.

    def apply_complete_steps(self, now: float) -> None:
        """Apply every step whose gradients are all there, up to one that awaits a validation."""
        while (
            self._aggregation.complete
            and self.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
            and not self._early_stopping.waits(self._step)
        ):
            self._aggregation.apply()
            self._status_report.applied(now)
            self._after_step(now)

    def _after_step(self, now: float) -> None:
        """Do what the new weights call for."""
        step, state, operation = self._step, self._aggregation.state, self._run.operation
        stops = self.phase is RunPhase.STOPPING or self._early_stopping.is_over(step)
        ends = stops or self._aggregation.closed
        if not ends:
            self._status_report.broadcasts(now)
            self._lease_grants.broadcast(now)  # before all else: workers are waiting for it
        loss, weights = self._aggregation.loss, as_frame(state.parameters.flat)
        self._outbox.add(effects.Append(step, loss, weights))
        if _is_due(step, RECORD_EVERY_STEPS) or ends:
            self._outbox.add(effects.Record(self._status_report.figures(now)))
        self._stop_where_no_better(now)
        if ends:
            if self.phase is not RunPhase.SAVING:
                self.save(now)
            return
        if _is_due(step, operation.checkpoint_every):
            self._early_stopping.expect(step)
            self._outbox.add(effects.Save(state))
        if _is_due(step, operation.sample_every):
            self._status_report.show(now)
            self._outbox.show(self._status_report.weights())

    def go_on(self, now: float) -> None:
        """Do what an awaited validation, or the failure of one, makes possible."""
        self._stop_where_no_better(now)
        self.apply_complete_steps(now)
        self.settle()

    # Stopping.

    def stop(self, finish: Finish, *, now: float, by: float) -> None:
        """End with the step that is being computed, at time `by` without it."""
        self.asked = self.asked or finish
        if self.phase is RunPhase.SAVING:
            self.settle()
        elif self.phase is RunPhase.TRAINING:
            self.phase = RunPhase.STOPPING
            self._finish = finish
            self._stop_by = by
            if not self._membership.workers() or self._early_stopping.waits(self._step):
                self.save(now)

    def tick(self, now: float) -> None:
        """Stop without the step's end where it will not come."""
        in_vain = now >= self._stop_by or not self._membership.workers()
        if self.phase is RunPhase.STOPPING and in_vain:
            self.save(now)

    def _stop_where_no_better(self, now: float) -> None:
        """End here if the decision on the checkpoint before this one was to stop."""
        if self.phase is RunPhase.TRAINING and self._early_stopping.is_over(self._step):
            patience = self._run.operation.stop_when_no_better
            last = self._step - self._run.operation.checkpoint_every
            plural = "s" if patience > 1 else ""
            reason = f"no better for {patience} checkpoint{plural} up to step {last:,}"
            self._finish = Finish(0, reason)
            self.save(now)

    # The end.

    def save(self, now: float) -> None:
        """Apply nothing more, and write the last checkpoint."""
        self.phase = RunPhase.SAVING
        self._aggregation.close()
        self._status_report.waits_for_disk = True
        self._status_report.show(now, pages=True)
        self._outbox.show(self._status_report.weights())
        if not self._failed and self.asked is None:
            self._early_stopping.expect(self._step)
        self._outbox.add(effects.Save(self._aggregation.state))

    def settle(self) -> None:
        """Finish if all is done: saved, validated, and no conflict open."""
        validated = self.asked or self._failed or not self._early_stopping.awaited
        saved = self.phase is RunPhase.SAVING and self._saved_step == self._step
        if saved and validated and not self._conflicting_results.open:
            end = self._finish or Finish(0, f"finished at step {self._step:,}")
            summary = "" if end.code else self._early_stopping.summary
            self.finish(end.code, "; ".join(filter(None, (end.reason, summary))))

    def finish(self, code: int, reason: str) -> None:
        """Finish now, and tell every peer. Nothing follows."""
        run, term = self._run.run, self._run.term
        self._outbox.send_to_all(Done(run=run, term=term, code=code, reason=one_line(reason)))
        self._outbox.add(Finish(code, reason))
        self._end()

    def resume_before(self, effect: effects.ResumeBefore) -> None:
        """End this term, and have every peer join the next one. Nothing follows.

        Peers are told once what has to be remembered is on disk.
        """
        self._outbox.add(effect)
        self._outbox.send_to_all(Reset(run=self._run.run, term=self._run.term))
        self._end()

    def _end(self) -> None:
        self.phase = RunPhase.FINISHED
        self._outbox.close()

    # Checkpoints.

    def _have_validated(self, step: int) -> None:
        if self._early_stopping.is_to_be_asked(step):
            self._outbox.add(effects.Validate(step))

    def checkpoint_written(self, event: events.CheckpointWritten, now: float) -> None:
        """Have the checkpoint validated."""
        if event.failure:
            self._not_written(event, now)
            return
        self._status_report.saved(event.step, now)
        self._have_validated(event.step)
        self._saved_step = max(self._saved_step, event.step)
        self._status_report.waits_for_disk &= event.step != self._step

    def _not_written(self, event: events.CheckpointWritten, now: float) -> None:
        """End the run, or go on without the checkpoint."""
        step = event.step
        awaited = step in self._early_stopping.awaited
        self._early_stopping.pass_over(step)
        what = f"the checkpoint of step {step} could not be written: {event.failure}"
        last = self.phase is RunPhase.SAVING and step == self._step
        if last or self._run.operation.on_disk_error == "stop":
            self.finish(RUN_FAILED, f"{what}; the last good checkpoint is kept")
            return
        self._outbox.count(Counter.CHECKPOINTS_NOT_WRITTEN)
        self._outbox.warn(f"{what}; going on")
        if awaited and self._early_stopping.depends_on(step):
            self._without_validation(what, now)

    def validated(self, event: events.Validated, now: float) -> None:
        """Record the validation loss of a checkpoint."""
        self._early_stopping.record(event.step, event.nats)
        self._status_report.show(now)

    def not_validated(self, event: events.NotValidated, now: float) -> None:
        """Go on without this validation loss, unless the end of the run depends on it."""
        if self._early_stopping.depends_on(event.step):
            self._without_validation(f"the checkpoint of step {event.step}: {event.reason}", now)
            return
        self._early_stopping.pass_over(event.step)
        self._outbox.count(Counter.CHECKPOINTS_NOT_VALIDATED)
        text = f"the checkpoint of step {event.step} is not validated: {event.reason}"
        self._outbox.warn(text)

    def validation_failed(self, event: events.ValidationFailed, now: float) -> None:
        """Go on without validation, unless the end of the run depends on it."""
        self._without_validation(event.reason, now)

    def _without_validation(self, reason: str, now: float) -> None:
        self._outbox.notice(f"checkpoints are not validated any more: {reason}", Level.ERROR)
        decided = self._early_stopping.decides
        self._early_stopping.give_up()
        if decided and self.phase is RunPhase.TRAINING:
            self._finish = Finish(RUN_FAILED, f"where this run ends cannot be told: {reason}")
            self.save(now)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
