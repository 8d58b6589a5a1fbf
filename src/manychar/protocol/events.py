"""The machines' mechanism: events are facts, and a table names what each does in which state."""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, dataclass_transform

from manychar.protocol.counters import Counter
from manychar.protocol.messages import Frame, Message, Owner, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass_transform(frozen_default=True)
class Event:
    """Something that happened. `handle(event, now)` of a machine returns the effects to carry out.

    An event that the machine's table does not name for its state is a ProtocolError. Every kind of
    event is a frozen dataclass.
    """

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True)(cls)


# To every machine.


class Received(Event):
    """A message arrived. To a server: from `peer`, with the key of `owner` where there are keys."""

    message: Message
    peer: Peer = b""
    owner: Owner | None = None


class Computed(Event):
    """A shard was computed in `seconds`; the longest piece of work took `longest_piece` seconds.

    `weights_digest` is of the weights that were used; `gradient` is the array, shape (P,).
    """

    shard: int
    step: int
    weights_digest: bytes
    loss: float
    gradient: "NDArray[Any]"
    hidden: Frame
    longest_piece: float
    seconds: float


class MailboxEmpty(Event):
    """Every message that has arrived was handled."""


class DeadlinePassed(Event):
    """The machine's deadline has passed.

    `unreachable` says why there is no connection to the server, where that is known.
    """

    unreachable: str = ""


class Suspended(Event):
    """The process was stopped for so many seconds: silence in that time does not count."""

    seconds: float


# To a worker or an observer.


class FingerprintComputed(Event):
    """The process's numerics are known; the longest piece of work took `longest_piece` seconds."""

    fingerprint: str
    libraries: Mapping[str, str]
    longest_piece: float


class HeartbeatDue(Event):
    """A heartbeat is due while a unit is computed."""


class LeaveRequested(Event):
    """The process has to end in good order, with this exit code."""

    code: int
    reason: str


# To a server.


class Started(Event):
    """The server listens."""


class Malformed(Event):
    """A message of this peer was refused by the codec, or by the table of peers."""

    peer: Peer
    reason: str
    owner: Owner | None = None


class PeerLost(Event):
    """The connection to this peer is closed."""

    peer: Peer


class KeyRevoked(Event):
    """The key of this peer is no longer valid."""

    peer: Peer


class CheckpointWritten(Event):
    """The checkpoint of this step is on disk; `failure` is the reason why it is not."""

    step: int
    failure: str = ""
    for_recovery: bool = False


class Validated(Event):
    """A checkpoint's validation loss, in nats a character; `failure` is why there will be none."""

    step: int
    nats: float = math.nan
    failure: str = ""


class ValidationFailed(Event):
    """No checkpoint will be validated any more."""

    reason: str


class StopRequested(Event):
    """The run has to end after its open step, or at time `by` without it, with this exit code."""

    code: int
    reason: str
    by: float


class Dropped(Event):
    """The shell dropped something: `counter` counts it; a reason is logged, too."""

    counter: Counter
    count: int = 1
    reason: str = ""


class DiskWaited(Event):
    """The next checkpoint has no room before earlier ones are written: the loop waits."""


# Transition tables.


class PeerError(RuntimeError):
    """A message that its sender may not send in its state: counted as malformed."""


class ProtocolError(RuntimeError):
    """An event that a machine's table does not name: a bug, which ends the process."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What handles an event, and all states that may follow; none are: the state stays."""

    handler: Callable[..., Any]
    next_states: tuple[enum.Enum, ...]

    def check(self, fact: object, *, before: enum.Enum, after: enum.Enum) -> None:
        """Raise ProtocolError where an event led to a state that the row does not name."""
        if after not in (self.next_states or (before,)):
            transition = f"from {before.value} to {after.value}"
            raise ProtocolError(f"{type(fact).__name__} led {transition}: not in the table")


Table = dict[tuple[enum.Enum, type[Any]], Row]


def rows(
    states: tuple[enum.Enum, ...],
    kinds: tuple[type[Any], ...],
    handler: Callable[..., Any],
    *next_states: enum.Enum,
) -> Table:
    """Return the rows of a table that have the same handler: each state with each kind."""
    return {(state, kind): Row(handler, next_states) for state in states for kind in kinds}
