"""What the server shows: how the run stands, and its newest weights for samples."""

from manychar.protocol.aggregation import Aggregation, as_frame
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.membership import Membership
from manychar.protocol.messages import Report, Weights
from manychar.protocol.outbox import Outbox
from manychar.protocol.run_spec import RunSpec

REPORT_EVERY = 0.2
NAMES_SHOWN = 32
COUNTS_SHOWN = 16  # with the longest names they fit into a header


class RunReport:
    """Makes reports of a run, and shows one when it is time and something has happened."""

    def __init__(
        self,
        run: RunSpec,
        steps: Aggregation,
        membership: Membership,
        early_stopping: EarlyStopping,
        outbox: Outbox,
        *,
        now: float,
    ) -> None:
        self._run = run
        self._early_stopping = early_stopping
        self._steps = steps
        self._membership = membership
        self._outbox = outbox
        self._began_at = now - run.seconds_before
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
        validated = self._early_stopping.newest
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
            validated=validated,
            validation=None
            if validated is None
            else self._early_stopping.validation_losses[validated],
            best=self._early_stopping.best,
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
