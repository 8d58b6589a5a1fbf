"""Effects: the instructions of a machine to its shell, carried out in order."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, dataclass_transform

from manychar.protocol import messages
from manychar.protocol.messages import Frame, Message, Peer, Status

if TYPE_CHECKING:
    from manychar.numerics.training_step import TrainingState

RUN_FAILED = 3  # exit codes of a Finish
STOPPED = 75


class Level(enum.StrEnum):
    """The level of a log line."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass_transform(frozen_default=True)
class Effect:
    """Something to do; its result is an event. Every kind is a frozen dataclass."""

    def __init_subclass__(cls, **options: bool) -> None:
        dataclasses.dataclass(frozen=True, **options)(cls)


class Send(Effect):
    """Send the message; `to` is None where there is only one other side."""

    message: Message
    to: Peer | None = None


class Save(Effect, eq=False):
    """Write a checkpoint in the background: CheckpointWritten follows."""

    state: "TrainingState"
    for_recovery: bool = False


class Validate(Effect):
    """Validate a checkpoint: Validated or ValidationFailed follows."""

    step: int


class Log(Effect):
    """Log one line."""

    text: str
    level: Level = Level.INFO


class Show(Effect):
    """Show the run's status, weights to sample from, or an answer, to the user of this process."""

    message: Status | messages.Weights | messages.Unbanned


class Append(Effect):
    """Add to the journal: the newest weights, of this step, and the loss of the step before."""

    step: int
    loss: float


class RecordMetrics(Effect):
    """Add these figures to the run's metrics."""

    status: Status


class ComputeFingerprint(Effect):
    """Pin the numerics, compute the fingerprint (a relay listens): FingerprintComputed follows."""

    welcome: messages.Welcome


class Compute(Effect, kw_only=True):
    """Compute one shard at one step: Computed follows."""

    shard: int
    step: int
    fresh: bool
    weights: Frame
    hidden: Frame
    ids: Frame


class ResumeBefore(Effect):
    """Note durably that the run resumes from the newest checkpoint below `step`, and restart."""

    step: int


class RememberBans(Effect):
    """Write to config.json's facts all banned names, with the reason for each ban."""

    banned: Mapping[str, str]


class Finish(Effect):
    """End this process with the exit code; the reason is printed, so it is never empty.

    A run that is not `resumable` would end in the same way again.
    """

    code: int
    reason: str
    resumable: bool = True

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError(f"an end with code {self.code} has no reason")
