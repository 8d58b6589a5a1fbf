"""How a run ends: its phases, and what must be on disk and validated before it is finished.

TRAINING ──the last step, or early stopping──▶ SAVING ──saved, validated──▶ FINISHED
TRAINING ──stop──▶ STOPPING ──the step is applied, or no time left──▶ SAVING
any ──a failure, a way back, a newer server──▶ FINISHED
"""

import dataclasses
import enum
import math

from manychar.protocol.aggregation import Aggregation, as_frame
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.effects import (
    RUN_FAILED,
    Append,
    Finish,
    KeepBest,
    Record,
    ResumeBefore,
    Save,
    Validate,
)
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.membership import Membership
from manychar.protocol.messages import Done, Level, Reset, one_line
from manychar.protocol.outbox import Outbox
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.stall_report import StallReport
from manychar.protocol.status_report import StatusReport

RECORD_EVERY_STEPS = 100


class RunPhase(enum.Enum):
    """Where the run stands."""

    STARTING = "starting"
    TRAINING = "training"
    STOPPING = "stopping"
    SAVING = "saving"
    FINISHED = "finished"


@dataclasses.dataclass(kw_only=True)
class Lifecycle:
    """The run's phase, what each step leads to, and what is still awaited.

    Times are seconds of any steady clock. `asked` is what a stop asked for. Most attributes are the
    parts of the server that a phase depends on.
    """

    run: RunSpec
    aggregation: Aggregation
    membership: Membership
    lease_grants: LeaseGrants
    conflicting_results: ConflictingResults
    early_stopping: EarlyStopping
    waiting: StallReport
    status_report: StatusReport
    outbox: Outbox
    phase: RunPhase = RunPhase.STARTING
    asked: Finish | None = None
    _finish: Finish | None = None
    _saved_step: int = -1
    _stop_by: float = math.inf

    @property
    def _finish_code(self) -> int:
        return self._finish.code if self._finish else 0

    @property
    def _step(self) -> int:
        return self.aggregation.state.step

    def begin(self, now: float) -> None:
        """Start with what is not validated yet; a run that is through already ends at once."""
        self.phase = RunPhase.TRAINING
        for step in self.run.unvalidated:
            self.early_stopping.expect(step)
            self._have_validated(step)
        if self.aggregation.closed:
            self.save(now)
        else:
            self._stop_where_no_better(now)

    # Steps.

    def apply_complete_steps(self, now: float) -> None:
        """Apply every step whose gradients are all there, up to one that awaits a validation."""
        while (
            self.aggregation.complete
            and self.phase in (RunPhase.TRAINING, RunPhase.STOPPING)
            and not self.early_stopping.waits(self._step)
        ):
            self.aggregation.apply()
            self.waiting.applied(now)
            self._after_step(now)

    def _after_step(self, now: float) -> None:
        """Do what the new weights call for."""
        step, operation = self._step, self.run.operation
        ends = (
            self.early_stopping.is_over(step)
            or self.aggregation.closed
            or self.phase is RunPhase.STOPPING
        )
        if not ends:
            self.status_report.broadcasts(now)
            self.lease_grants.broadcast(now)  # before all else: workers are waiting for it
        self.outbox.add(
            Append(step, self.aggregation.loss, as_frame(self.aggregation.state.parameters.flat))
        )
        if _is_due(step, RECORD_EVERY_STEPS) or ends:
            self.outbox.add(Record(self.status_report.figures(now)))
        self._stop_where_no_better(now)
        if ends:
            if self.phase is not RunPhase.SAVING:
                self.save(now)
            return
        if _is_due(step, operation.checkpoint_every):
            self.early_stopping.expect(step)
            self.outbox.add(Save(self.aggregation.state))
        if _is_due(step, operation.sample_every):
            self.status_report.show(now)
            self.outbox.show(self.status_report.weights())

    def go_on(self, now: float) -> None:
        """Do what an awaited validation, or the failure of one, makes possible."""
        self._stop_where_no_better(now)
        self.apply_complete_steps(now)
        self.settle()

    # Asked to.

    def stop(self, finish: Finish, *, now: float, by: float) -> None:
        """End with the step that is being computed, at time `by` without it."""
        self.asked = self.asked or finish
        if self.phase is RunPhase.SAVING:
            self.settle()
        elif self.phase is RunPhase.TRAINING:
            self.phase = RunPhase.STOPPING
            self._finish = finish
            self._stop_by = by
            if not self.membership.workers() or self.early_stopping.waits(self._step):
                self.save(now)

    def tick(self, now: float) -> None:
        """Stop without the step's end where it will not come."""
        in_vain = now >= self._stop_by or not self.membership.workers()
        if self.phase is RunPhase.STOPPING and in_vain:
            self.save(now)

    # Over.

    def save(self, now: float) -> None:
        """Apply nothing more, and write the last checkpoint."""
        self.phase = RunPhase.SAVING
        self.aggregation.close()
        self.waiting.for_disk = True
        self.status_report.show_pages(now)
        self.outbox.show(self.status_report.weights())
        if self._finish_code == 0 and self.asked is None:
            self.early_stopping.expect(self._step)
        self.outbox.add(Save(self.aggregation.state))

    def settle(self) -> None:
        """Finish if all is done: saved, validated, and no conflict open."""
        saved = self._saved_step == self._step
        validated = (
            self.asked is not None or self._finish_code != 0 or not self.early_stopping.awaited
        )
        if (
            self.phase is RunPhase.SAVING
            and saved
            and validated
            and not self.conflicting_results.open
        ):
            reason = self._finish.reason if self._finish else f"finished at step {self._step:,}"
            summary = "" if self._finish_code else self.early_stopping.summary
            self.finish(self._finish_code, "; ".join(filter(None, (reason, summary))))

    def finish(self, code: int, reason: str) -> None:
        """Finish now, and tell every peer. Nothing follows."""
        run, term = self.outbox.run, self.outbox.term
        self._tell_everyone(Done(run=run, term=term, code=code, reason=one_line(reason)))
        self.outbox.add(Finish(code, reason))
        self._end()

    def resume_before(self, effect: ResumeBefore) -> None:
        """End this term, and have every peer join the next one. Nothing follows.

        Peers are told once what has to be remembered is on disk.
        """
        self.outbox.add(effect)
        self._tell_everyone(Reset(run=self.outbox.run, term=self.outbox.term))
        self._end()

    def _tell_everyone(self, message: Done | Reset) -> None:
        for peer in self.membership.members:
            self.outbox.send(peer, message)

    def _end(self) -> None:
        self.phase = RunPhase.FINISHED
        self.outbox.close()

    # The disk.

    def saved(self, step: int, now: float) -> None:
        """Take note that the checkpoint of `step` is on disk."""
        self.status_report.saved(step, now)
        self._have_validated(step)
        self._saved_step = max(self._saved_step, step)
        self.waiting.for_disk &= step != self._step
        self.settle()

    def save_failed(self, step: int, reason: str, now: float) -> None:
        """Take note that it is not: end the run, or go on without it."""
        awaited = step in self.early_stopping.awaited
        self.early_stopping.pass_over(step)
        what = f"the checkpoint of step {step} could not be written: {reason}"
        last = self.phase is RunPhase.SAVING and step == self._step
        if last or self.run.operation.on_disk_error == "stop":
            self.finish(RUN_FAILED, f"{what}; the last good checkpoint is kept")
            return
        self.outbox.count(Counter.CHECKPOINTS_NOT_WRITTEN)
        self.outbox.warn(f"{what}; going on")
        if awaited and self.early_stopping.depends_on(step):
            self.validation_failed(what, now)

    # Validation.

    def _have_validated(self, step: int) -> None:
        if self.early_stopping.is_to_be_asked(step):
            self.outbox.add(Validate(step))

    def validated(self, step: int, nats: float, now: float) -> None:
        """Take the validation loss of a checkpoint, in nats a character."""
        if self.early_stopping.take(step, nats):
            self.outbox.add(KeepBest(step))
        self.status_report.show(now)

    def not_validated(self, step: int, reason: str, now: float) -> None:
        """Take note that a checkpoint cannot be validated: it is no longer there."""
        if self.early_stopping.depends_on(step):
            self.validation_failed(f"the checkpoint of step {step}: {reason}", now)
            return
        self.early_stopping.pass_over(step)
        self.outbox.count(Counter.CHECKPOINTS_NOT_VALIDATED)
        self.outbox.warn(f"the checkpoint of step {step} is not validated: {reason}")

    def validation_failed(self, reason: str, now: float) -> None:
        """Take note that no checkpoint is validated any more; a run that depends on it ends."""
        text = f"checkpoints are not validated any more: {reason}"
        self.outbox.notice(text, Level.ERROR)
        decided = self.early_stopping.decides
        self.early_stopping.give_up()
        if decided and self.phase is RunPhase.TRAINING:
            self._finish = Finish(RUN_FAILED, f"where this run ends cannot be told: {reason}")
            self.save(now)

    def _stop_where_no_better(self, now: float) -> None:
        """End here if the decision on the checkpoint before this one was to stop."""
        if self.phase is RunPhase.TRAINING and self.early_stopping.is_over(self._step):
            patience = self.run.operation.stop_when_no_better
            last = self._step - self.run.operation.checkpoint_every
            plural = "s" if patience > 1 else ""
            reason = f"no better for {patience} checkpoint{plural} up to step {last:,}"
            self._finish = Finish(0, reason)
            self.save(now)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
