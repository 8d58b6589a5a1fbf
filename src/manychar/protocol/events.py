"""What happens to a machine: facts. `handle(event, now)` of a machine returns what is to be done.

Each machine's table says which events it takes in which state; another one is a ProtocolError.
"""

import dataclasses

from manychar.protocol.counters import Counter
from manychar.protocol.effects import FingerprintResult, Result
from manychar.protocol.messages import Message, Owner, Peer

# To every machine.


@dataclasses.dataclass(frozen=True)
class Received:
    """A message arrived. To a server: from `peer`, with the key of `owner` where there are keys."""

    message: Message
    peer: Peer = b""
    owner: Owner | None = None


@dataclasses.dataclass(frozen=True)
class Computed:
    """The effect Compute was carried out."""

    shard: int
    step: int
    result: Result


@dataclasses.dataclass(frozen=True)
class MailboxEmpty:
    """Every message that has arrived was handled."""


@dataclasses.dataclass(frozen=True)
class DeadlinePassed:
    """The machine's deadline has come."""


@dataclasses.dataclass(frozen=True)
class Suspended:
    """The process was stopped for so many seconds: what was silent then need not be lost."""

    seconds: float


# To a worker or an observer.


@dataclasses.dataclass(frozen=True)
class FingerprintComputed:
    """The effect ComputeFingerprint was carried out."""

    result: FingerprintResult


@dataclasses.dataclass(frozen=True)
class HeartbeatDue:
    """A computation goes on, and it is time for a heartbeat."""


@dataclasses.dataclass(frozen=True)
class LeaveRequested:
    """The process is to end in good order, with this exit code."""

    code: int
    reason: str


# To a server.


@dataclasses.dataclass(frozen=True)
class Started:
    """The server listens."""


@dataclasses.dataclass(frozen=True)
class Malformed:
    """A message of this peer was refused by the codec, or by the table of peers."""

    peer: Peer
    reason: str
    owner: Owner | None = None


@dataclasses.dataclass(frozen=True)
class PeerLost:
    """There is no connection to this peer any more."""

    peer: Peer


@dataclasses.dataclass(frozen=True)
class KeyRevoked:
    """The key of this peer is no longer valid."""

    peer: Peer


@dataclasses.dataclass(frozen=True)
class CheckpointSaved:
    """The checkpoint of this step is on disk."""

    step: int


@dataclasses.dataclass(frozen=True)
class CheckpointFailed:
    """The checkpoint of this step could not be written."""

    step: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Validated:
    """The validation loss of a checkpoint is known, in nats a character."""

    step: int
    nats: float


@dataclasses.dataclass(frozen=True)
class NotValidated:
    """A checkpoint cannot be validated: it is no longer there."""

    step: int
    reason: str


@dataclasses.dataclass(frozen=True)
class ValidationFailed:
    """No checkpoint will be validated any more."""

    reason: str


@dataclasses.dataclass(frozen=True)
class StopRequested:
    """The run is to end with its step, or at time `by` without it, and with this exit code."""

    code: int
    reason: str
    by: float


@dataclasses.dataclass(frozen=True)
class Dropped:
    """The shell dropped something: `counter` counts it; a reason is told to everyone."""

    counter: Counter
    count: int = 1
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Warned:
    """The shell has a warning for everyone."""

    text: str


@dataclasses.dataclass(frozen=True)
class DiskWaited:
    """The next checkpoint has no room before earlier ones are written: the loop waits."""


CheckpointOutcome = CheckpointFailed | Validated | NotValidated | ValidationFailed
Event = (
    Received
    | Computed
    | MailboxEmpty
    | DeadlinePassed
    | Suspended
    | FingerprintComputed
    | HeartbeatDue
    | LeaveRequested
    | Started
    | Malformed
    | PeerLost
    | KeyRevoked
    | CheckpointSaved
    | CheckpointFailed
    | Validated
    | NotValidated
    | ValidationFailed
    | StopRequested
    | Dropped
    | Warned
    | DiskWaited
)
