"""ServerPart: what each part of the server's machine works on and reports to."""

import dataclasses

from manychar.protocol.aggregation import Aggregation
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.membership import Membership
from manychar.protocol.outbox import Outbox
from manychar.protocol.run_spec import RunSpec


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all parts share. These know nothing of the parts."""

    spec: RunSpec
    aggregation: Aggregation
    membership: Membership
    early_stopping: EarlyStopping
    outbox: Outbox


class ServerPart:
    """Base class of the parts. Their times are seconds of any steady clock."""

    def __init__(self, shared: Shared) -> None:
        self._spec = shared.spec
        self._aggregation = shared.aggregation
        self._membership = shared.membership
        self._early_stopping = shared.early_stopping
        self._outbox = shared.outbox

    @property
    def _step(self) -> int:
        """The open step."""
        return self._aggregation.state.step

    @property
    def _new_run(self) -> str:
        """What to do where training diverges."""
        definition = self._spec.definition
        rate, warmup = f"{definition.learning_rate:g}", f"{definition.warmup:,}"
        return f"start a new run with a --learning-rate below {rate}, or a --warmup above {warmup}"
