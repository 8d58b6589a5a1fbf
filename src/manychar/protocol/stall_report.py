"""What the run is waiting for, and since when: reported when a step takes far longer than usual."""

from manychar.protocol.aggregation import Aggregation
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.outbox import Outbox

FIRST_REPORT_AFTER = 1.0
LONG_STEP = 4
REPORT_EVERY = 10.0
NAMES_SHOWN = 5


class StallReport:
    """Times are seconds of any steady clock; `since` is when the last step was applied."""

    def __init__(
        self,
        aggregation: Aggregation,
        lease_grants: LeaseGrants,
        early_stopping: EarlyStopping,
        outbox: Outbox,
        *,
        now: float,
    ) -> None:
        self.since = now
        self.for_disk = False
        self._aggregation = aggregation
        self._lease_grants = lease_grants
        self._early_stopping = early_stopping
        self._outbox = outbox
        self._long_from = self._report_at = now + FIRST_REPORT_AFTER

    def applied(self, now: float) -> None:
        """Note that a step was applied: the next one may take as long, and longer."""
        usual = LONG_STEP * (now - self.since)
        self.since = now
        self._long_from = now + max(FIRST_REPORT_AFTER, min(usual, REPORT_EVERY))
        self._report_at = self._long_from

    def tick(self, now: float) -> None:
        """Report what the run is waiting for, if it is time to."""
        if now >= self._report_at:
            self._report_at = now + REPORT_EVERY
            waited = now - self.since
            step = self._aggregation.state.step
            self._outbox.warn(f"step {step} has waited {waited:.0f} s for {self._what()}")

    def waiting_for(self, now: float) -> str:
        """Return what the run is waiting for, in words; nothing while a step is not late."""
        return self._what() if self.for_disk or now >= self._long_from else ""

    def _what(self) -> str:
        step = self._aggregation.state.step
        if self.for_disk:
            return f"the disk: the checkpoint of step {step} is being written"
        if self._aggregation.closed or self._early_stopping.waits(step):
            awaited = ", ".join(map(str, self._early_stopping.awaited_before(step) or [step]))
            return f"the validation loss of step {awaited}"
        late = self._lease_grants.late()
        more = f" and {len(late) - NAMES_SHOWN} more" if len(late) > NAMES_SHOWN else ""
        return ", ".join(late[:NAMES_SHOWN]) + more if late else "a worker: none is here"
