"""What a machine asks its shell to do: imperatives, carried out in order."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manychar.protocol.messages import (
    Frame,
    Level,
    Message,
    Peer,
    Status,
    Unbanned,
    Weights,
    Welcome,
)

if TYPE_CHECKING:
    from manychar.numerics.training_step import TrainingState


RUN_FAILED = 3  # exit codes of a Finish
STOPPED = 75


class ProtocolError(RuntimeError):
    """An event that this machine's table does not list: a fault of ours, and loud."""


class PeerError(RuntimeError):
    """A message that the table does not list for its sender: a fault of the other side, counted."""


@dataclasses.dataclass(frozen=True)
class Send:
    """Send the message; `to` is None where there is only one other side."""

    message: Message
    to: Peer | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Save:
    """Write a checkpoint beside the loop, and come back with `saved` or `save_failed`."""

    state: "TrainingState"


@dataclasses.dataclass(frozen=True)
class Validate:
    """Have a checkpoint judged; come back with `judged`, `not_judged` or `judge_failed`."""

    step: int


@dataclasses.dataclass(frozen=True)
class KeepBest:
    """Keep the checkpoint of `step` under a name of its own: no other is better so far."""

    step: int


@dataclasses.dataclass(frozen=True)
class Log:
    """Tell the person at this process, in one line."""

    text: str
    level: Level = Level.INFO


@dataclasses.dataclass(frozen=True)
class Show:
    """Show the run's status, weights to sample from, or an answer, to the user of this process."""

    message: Status | Weights | Unbanned


@dataclasses.dataclass(frozen=True)
class Append:
    """Add to the journal: weights `step` came into being, the step before it had this loss."""

    step: int
    loss: float
    weights: Frame


@dataclasses.dataclass(frozen=True)
class Record:
    """Add these figures to the run's metrics."""

    status: Status


@dataclasses.dataclass(frozen=True)
class ComputeFingerprint:
    """Pin the numerics that the run wants, compute the fingerprint, and come back with `proved`."""

    welcome: Welcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Compute one unit, and come back with `computed`."""

    shard: int
    step: int
    fresh: bool
    weights: Frame
    hidden: Frame
    ids: Frame


@dataclasses.dataclass(frozen=True)
class FingerprintResult:
    """What came of Prove; `slowest` is the longest piece of work in seconds."""

    fingerprint: str
    libraries: Mapping[str, str]
    slowest: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of Compute: `seconds` in all, `slowest` its longest piece of work in seconds."""

    loss: float
    gradient: Frame
    hidden: Frame
    slowest: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class ResumeBefore:
    """Note durably to resume before the state of `step`, and who is banned and why; then restart.

    The next server takes the newest checkpoint below `step`.
    """

    step: int
    banned: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Remember:
    """Write to config.json's facts that the run is `mixed`, or the `banned` names with reasons."""

    changes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finish:
    """End this process with the exit code; the reason is printed, so it is never empty."""

    code: int
    reason: str

    def __post_init__(self) -> None:
        """Raise ValueError for an end without a reason: a fault of ours."""
        if not self.reason:
            raise ValueError(f"an end with code {self.code} has no reason")


Effect = (
    Send
    | Save
    | Validate
    | KeepBest
    | Log
    | Show
    | Append
    | Record
    | ComputeFingerprint
    | Compute
    | ResumeBefore
    | Remember
    | Finish
)
