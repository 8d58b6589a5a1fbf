"""What a machine asks its shell to do: imperatives, carried out in order."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manychar.protocol import messages
from manychar.protocol.messages import Frame, Level, Message, Peer, Status

if TYPE_CHECKING:
    from manychar.numerics.training_step import TrainingState

RUN_FAILED = 3  # exit codes of a Finish
STOPPED = 75


@dataclasses.dataclass(frozen=True)
class Effect:
    """Something to do; what comes of it is an event again."""


class PeerError(RuntimeError):
    """A message that its sender may not send in its state: counted as malformed."""


@dataclasses.dataclass(frozen=True)
class Send(Effect):
    """Send the message; `to` is None where there is only one other side."""

    message: Message
    to: Peer | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Save(Effect):
    """Write a checkpoint in the background: CheckpointSaved or CheckpointFailed follows."""

    state: "TrainingState"


@dataclasses.dataclass(frozen=True)
class Validate(Effect):
    """Validate a checkpoint: Validated, NotValidated or ValidationFailed follows."""

    step: int


@dataclasses.dataclass(frozen=True)
class Log(Effect):
    """Log one line."""

    text: str
    level: Level = Level.INFO


@dataclasses.dataclass(frozen=True)
class Show(Effect):
    """Show the run's status, weights to sample from, or an answer, to the user of this process."""

    message: Status | messages.Weights | messages.Unbanned


@dataclasses.dataclass(frozen=True)
class Append(Effect):
    """Add to the journal: weights `step`, and the loss of the step that made them."""

    step: int
    loss: float
    weights: Frame


@dataclasses.dataclass(frozen=True)
class Record(Effect):
    """Add these figures to the run's metrics."""

    status: Status


@dataclasses.dataclass(frozen=True)
class ComputeFingerprint(Effect):
    """Pin the run's numerics, compute the fingerprint: FingerprintComputed follows."""

    welcome: messages.Welcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute(Effect):
    """Compute one unit: Computed follows."""

    shard: int
    step: int
    fresh: bool
    weights: Frame
    hidden: Frame
    ids: Frame


@dataclasses.dataclass(frozen=True)
class ResumeBefore(Effect):
    """Note durably that the run resumes from the newest checkpoint below `step`, and restart."""

    step: int


@dataclasses.dataclass(frozen=True)
class Remember(Effect):
    """Write to config.json's facts the `banned` names with reasons."""

    changes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finish(Effect):
    """End this process with the exit code; the reason is printed, so it is never empty."""

    code: int
    reason: str

    def __post_init__(self) -> None:
        """Raise ValueError for an end without a reason."""
        if not self.reason:
            raise ValueError(f"an end with code {self.code} has no reason")
