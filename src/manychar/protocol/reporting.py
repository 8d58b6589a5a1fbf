"""What the server shows: how the run stands, and its newest weights for samples."""

from manychar.protocol.judging import Judging
from manychar.protocol.membership import Membership
from manychar.protocol.messages import Report, Weights
from manychar.protocol.outbox import Outbox
from manychar.protocol.run import Run
from manychar.protocol.steps import Steps, as_frame

REPORT_EVERY = 0.2
NAMES_SHOWN = 32
COUNTS_SHOWN = 16  # with the longest names they fit into a header


class Reporting:
    """Makes reports of a run, and shows one when it is time and something has happened."""

    def __init__(
        self,
        run: Run,
        steps: Steps,
        membership: Membership,
        judging: Judging,
        outbox: Outbox,
        *,
        now: float,
    ) -> None:
        self._run = run
        self._judging = judging
        self._steps = steps
        self._membership = membership
        self._outbox = outbox
        self._began_at = now - run.operation.seconds_before
        self._next_at = now
        self._shown_step = -1
        self._checkpoint, self._saved_at = run.state.step, now

    def saved(self, step: int, now: float) -> None:
        """Note that a checkpoint is on disk."""
        self._checkpoint, self._saved_at = max(self._checkpoint, step), now

    def tick(self, now: float) -> None:
        """Show a report if there is something new."""
        if now >= self._next_at and self._steps.state.step != self._shown_step:
            self.show(now)

    def show(self, now: float) -> None:
        """Show how the run stands."""
        self._next_at = now + REPORT_EVERY
        self._shown_step = self._steps.state.step
        self._outbox.show(self.report(now))

    def report(self, now: float) -> Report:
        """Return how the run stands."""
        state, definition = self._steps.state, self._run.definition
        judged = self._judging.newest
        holding = {lease.peer for lease in self._membership.leases.values()}
        workers = self._membership.workers()
        return Report(
            run=self._run.run,
            term=self._run.term,
            step=state.step,
            steps=self._run.operation.steps,
            loss=self._steps.loss,
            smooth_loss=state.smooth_loss,
            characters=state.step * definition.characters_per_step,
            seconds=now - self._began_at,
            workers=tuple(m.name for m in workers if m.peer in holding)[:NAMES_SHOWN],
            standing_by=sum(member.peer not in holding for member in workers),
            counts=dict(self._outbox.counts.most_common(COUNTS_SHOWN)),
            checkpoint=self._checkpoint,
            checkpoint_age=now - self._saved_at,
            judged=judged,
            validation=None if judged is None else self._judging.verdicts[judged],
            best=self._judging.best,
        )

    def weights(self) -> Weights:
        """Return the newest weights, for whoever draws samples."""
        state = self._steps.state
        return Weights(
            run=self._run.run,
            term=self._run.term,
            version=state.step,
            weights=as_frame(state.parameters.flat),
            units=(),
            ids=(),
        )
