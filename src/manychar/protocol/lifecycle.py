"""How a run ends: which phase it is in, and what must be on disk and judged before it is over.

TRAINING ──the last step is applied, or it gets no better──▶ SAVING ──saved, judged──▶ FINISHED
TRAINING ──stop──▶ STOPPING ──the step is applied, or no time left──▶ SAVING
any ──a failure, a way back, a newer server──▶ FINISHED
"""

import enum
import math

from manychar.protocol.aggregation import Aggregation
from manychar.protocol.conflicting_results import ConflictingResults
from manychar.protocol.counters import Counter
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.effects import RUN_FAILED, Finish, KeepBest, Save, Validate
from manychar.protocol.membership import Membership
from manychar.protocol.messages import Done, Level, one_line
from manychar.protocol.outbox import Outbox
from manychar.protocol.run_report import RunReport
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.stall_report import StallReport


class RunPhase(enum.Enum):
    """Where the run stands."""

    TRAINING = "training"
    STOPPING = "stopping"
    SAVING = "saving"
    FINISHED = "finished"


class Lifecycle:
    """The run's phase, and what is still awaited. Times are seconds of any steady clock.

    `asked` is what a stop asked for, None before there was one.
    """

    def __init__(
        self,
        run: RunSpec,
        steps: Aggregation,
        membership: Membership,
        conflicting_results: ConflictingResults,
        early_stopping: EarlyStopping,
        waiting: StallReport,
        run_report: RunReport,
        outbox: Outbox,
    ) -> None:
        self.phase = RunPhase.TRAINING
        self.asked: Finish | None = None
        self._run = run
        self._steps = steps
        self._membership = membership
        self._conflicting_results = conflicting_results
        self._early_stopping = early_stopping
        self._waiting = waiting
        self._run_report = run_report
        self._outbox = outbox
        self._finish = Finish(0, "")
        self._saved_step = -1
        self._stop_by = math.inf

    @property
    def _step(self) -> int:
        return self._steps.state.step

    def begin(self, now: float) -> None:
        """Start with what is not judged yet; a run that is through already ends at once."""
        for step in self._run.unvalidated:
            self._early_stopping.expect(step)
            self._have_judged(step)
        if self._steps.closed:
            self.save(now)
        else:
            self.after_verdict(now)

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
            if not self._membership.workers() or self._early_stopping.waits(self._step):
                self.save(now)

    def tick(self, now: float) -> None:
        """Stop without the step's end where it will not come."""
        in_vain = now >= self._stop_by or not self._membership.workers()
        if self.phase is RunPhase.STOPPING and in_vain:
            self.save(now)

    # Over.

    def save(self, now: float) -> None:
        """Apply nothing more, and write the last checkpoint."""
        self.phase = RunPhase.SAVING
        self._steps.close()
        self._waiting.for_disk = True
        self._run_report.show(now)
        self._outbox.show(self._run_report.weights())
        if self._finish.code == 0 and self.asked is None:
            self._early_stopping.expect(self._step)
        self._outbox.add(Save(self._steps.state))

    def settle(self) -> None:
        """Finish if all is done: saved, judged, and nobody's arithmetic in doubt."""
        saved = self._saved_step == self._step
        validated = (
            self.asked is not None or self._finish.code != 0 or not self._early_stopping.awaited
        )
        if (
            self.phase is RunPhase.SAVING
            and saved
            and validated
            and not self._conflicting_results.open
        ):
            words = (
                self._finish.reason,
                self._early_stopping.summary if not self._finish.code else "",
            )
            self.finish(self._finish.code, "; ".join(filter(None, words)))

    def finish(self, code: int, reason: str) -> None:
        """Finish now, and tell every peer."""
        self.phase = RunPhase.FINISHED
        run, term = self._outbox.run, self._outbox.term
        done = Done(run=run, term=term, code=code, reason=one_line(reason))
        for peer in self._membership.members:
            self._outbox.send(peer, done)
        self._outbox.add(Finish(code, reason))

    # The disk.

    def saved(self, step: int, now: float) -> None:
        """Take note that the checkpoint of `step` is on disk."""
        self._run_report.saved(step, now)
        self._have_judged(step)
        self._saved_step = max(self._saved_step, step)
        self._waiting.for_disk &= step != self._step
        self.settle()

    def save_failed(self, step: int, reason: str, now: float) -> None:
        """Take note that it is not: end the run, or go on without it."""
        awaited = step in self._early_stopping.awaited
        self._early_stopping.pass_over(step)
        what = f"the checkpoint of step {step} could not be written: {reason}"
        last = self.phase is RunPhase.SAVING and step == self._step
        if last or self._run.operation.on_disk_error == "stop":
            self.finish(RUN_FAILED, f"{what}; the last good checkpoint is kept")
            return
        self._outbox.count(Counter.CHECKPOINTS_NOT_WRITTEN)
        self._outbox.warn(f"{what}; going on")
        if awaited and self._early_stopping.depends_on(step):
            self.validation_failed(what, now)

    # The judge.

    def _have_judged(self, step: int) -> None:
        if self._early_stopping.is_to_be_asked(step):
            self._outbox.add(Validate(step))

    def validated(self, step: int, nats: float, now: float) -> None:
        """Take the loss of a checkpoint on the held-out text, in nats a character."""
        if self._early_stopping.take(step, nats):
            self._outbox.add(KeepBest(step))
        self._run_report.show(now)

    def not_validated(self, step: int, reason: str, now: float) -> None:
        """Take note that a checkpoint cannot be judged: it is not there any more."""
        if self._early_stopping.depends_on(step):
            self.validation_failed(f"the checkpoint of step {step}: {reason}", now)
            return
        self._early_stopping.pass_over(step)
        self._outbox.count(Counter.CHECKPOINTS_NOT_VALIDATED)
        self._outbox.warn(f"the checkpoint of step {step} is not judged: {reason}")

    def validation_failed(self, reason: str, now: float) -> None:
        """Take note that nothing is judged any more; a run that depends on it ends."""
        text = f"the held-out text is not judged any more: {reason}"
        self._outbox.notice(text, Level.ERROR)
        decided = self._early_stopping.decides
        self._early_stopping.give_up()
        if decided and self.phase is RunPhase.TRAINING:
            self._finish = Finish(RUN_FAILED, f"where this run ends cannot be told: {reason}")
            self.save(now)

    def after_verdict(self, now: float) -> None:
        """End here if the decision on the checkpoint before this one was to stop."""
        if self.phase is RunPhase.TRAINING and self._early_stopping.is_over(self._step):
            patience = self._run.operation.stop_when_no_better
            last = self._step - self._run.operation.checkpoint_every
            plural = "s" if patience > 1 else ""
            reason = f"no better for {patience} checkpoint{plural} up to step {last:,}"
            self._finish = Finish(0, reason)
            self.save(now)
