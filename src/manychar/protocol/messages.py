"""The messages: adding one, or a field, is a change here alone (`codec.py` derives the bytes).

`term` rises each time the server of a run starts, and `session` is its random number: another one
is another term. A unit is a range of shards at one step. Tensors are raw and little-endian, in the
shapes that `Dimensions` gives.
"""

import dataclasses
import enum
import functools
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    TypedDict,
    dataclass_transform,
)

from manychar.numerics.tree_reduction import cover, largest_cover
from manychar.protocol import field_types as field

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIRE_VERSION = 3  # rises with every release that changes the messages

Frame = field.Frame
Peer = bytes  # the transport's identity of one connection
HOST_LENGTH = 64
PAGE_LENGTH = 7  # workers in one Status: with the longest names and all counts they fit its header


def one_line(text: str) -> str:
    """Return a text as a message can carry it: printable, on one line, not too long."""
    return "".join(c if c.isprintable() else " " for c in text)[: field.TEXT_LENGTH]


def as_frame(array: "NDArray[Any]") -> memoryview:
    """Return the little-endian bytes of a contiguous array that is never written to; no copy."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little.data.cast("B")


def digest(frame: Frame) -> bytes:
    """Return a CRC-32: whether two sides hold the same bytes, against faults, not malice."""
    return zlib.crc32(frame).to_bytes(field.DIGEST_BYTES, "little")


class Role(enum.StrEnum):
    """The role of a peer."""

    WORKER = "worker"
    OBSERVER = "observer"


class Level(enum.StrEnum):
    """The level of a log line."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class KeyRole(enum.StrEnum):
    """What a key allows: to send gradients, only to observe, or to stop the run and lift bans."""

    WORKER = "worker"
    OBSERVER = "observer"
    OPERATOR = "operator"


class Owner(NamedTuple):
    """The owner of the key that a connection was made with, as the transport has verified."""

    name: str
    role: KeyRole


Identities = tuple[str, str]
"""A worker's name and its key's: its own name again where there are no keys."""


class UnitState(enum.IntEnum):
    """The progress of a worker with one unit."""

    QUEUED = 0
    COMPUTING = 1
    SENT = 2


class Unit(NamedTuple):
    """The shards `first` … `last` at one step, under a lease; `state` is a UnitState."""

    lease: field.Integer
    first: field.Integer
    last: field.Integer
    step: field.Integer
    state: field.Integer


@dataclass_transform(frozen_default=True, kw_only_default=True)
class _Structure:
    """The base of what has fields on the wire: frozen dataclasses, made by keywords.

    The header of a `packed` message, of which there are many a step, is a fixed struct.
    """

    packed: ClassVar[bool] = False

    def __init_subclass__(cls, *, packed: bool = False) -> None:
        cls.packed = packed
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class Dimensions(_Structure):
    """The run's sizes: the length of every tensor frame follows from them."""

    vocabulary_size: field.Positive
    hidden: field.Positive
    seq_length: field.Positive
    streams: field.Positive
    shards: field.Positive
    dtype: field.Dtype

    @functools.cached_property
    def value_bytes(self) -> int:
        """Bytes of one number."""
        return {"float32": 4, "float64": 8}[self.dtype]

    @functools.cached_property
    def parameters_bytes(self) -> int:
        """Bytes of the weights, and of a gradient: Wxh, Whh, Why, bh, by as one vector."""
        V, H = self.vocabulary_size, self.hidden
        return self.value_bytes * (H * (2 * V + H + 1) + V)

    @functools.cached_property
    def hidden_bytes(self) -> int:
        """Bytes of one shard's hidden state, (B, H)."""
        return self.value_bytes * self.streams * self.hidden

    @functools.cached_property
    def id_bytes(self) -> int:
        """Bytes of one character's id: the narrowest of 1, 2 and 4 that holds the vocabulary."""
        return 1 if self.vocabulary_size <= 2**8 else 2 if self.vocabulary_size <= 2**16 else 4

    @functools.cached_property
    def ids_bytes(self) -> int:
        """Bytes of one batch, (B, T + 1)."""
        return self.id_bytes * self.streams * (self.seq_length + 1)


def most_units(size: Dimensions) -> int:
    """Return how many units one heartbeat can list: within a step, leases are added."""
    return 4 * size.shards + 4


def shards_in(values: Mapping[str, int]) -> int:
    """Return the number of shards of a message from `first` to `last`."""
    return values["last"] - values["first"] + 1


def _payload_bytes(size: Dimensions, values: Mapping[str, int]) -> int:
    first, last = values["first"], values["last"]
    if not first <= last < size.shards:
        raise field.WireError(f"shards {first} … {last} of {size.shards}")
    nodes = len(cover(size.shards, (first, last)))
    of_shard = size.hidden_bytes + field.LOSS_BYTES + field.DIGEST_BYTES
    return nodes * size.parameters_bytes + shards_in(values) * of_shard


def largest_payload(size: Dimensions) -> int:
    """Return the length of the longest payload of a unit's result: no range has more nodes."""
    of_shard = size.hidden_bytes + field.LOSS_BYTES + field.DIGEST_BYTES
    return largest_cover(size.shards) * size.parameters_bytes + size.shards * of_shard


ParametersFrame = Annotated[Frame, field.Tensor(lambda size, _: size.parameters_bytes)]
HiddenFrame = Annotated[
    Frame, field.Tensor(lambda size, values: shards_in(values) * size.hidden_bytes)
]
IdsFrame = Annotated[Frame, field.Tensor(lambda size, values: shards_in(values) * size.ids_bytes)]
PayloadFrame = Annotated[Frame, field.Tensor(_payload_bytes)]
Units = Annotated[tuple[Unit, ...], field.Records(Unit, most_units)]
Vocabulary = Annotated[Frame, field.Tensor(lambda *_: 4 * 0x110000, exact=False)]


class RunAndTerm(TypedDict):
    """The fields by which a message belongs to one server of one run."""

    run_id: str
    term: int
    session: int


class _InRun(_Structure):
    """The fields of every message of a run's member or server."""

    run_id: field.Name
    term: field.Integer
    session: field.Integer

    @property
    def run_and_term(self) -> RunAndTerm:
        return {"run_id": self.run_id, "term": self.term, "session": self.session}


class Hello(_Structure):
    """A client asks to be admitted. Its fields never change, so that every version reads it."""

    wire: field.Integer
    role: field.Name
    name: field.Name
    instance: field.Name
    machine: field.Texts


class Welcome(_InRun):
    """The run, its term and sizes, the numerics to pin; `silence` is the lease timeout in s.

    Observers get the vocabulary (UTF-8) as well, to draw samples with.
    """

    dimensions: Dimensions
    numerics: field.Name
    seed: field.Integer
    silence: field.Number
    vocabulary: Vocabulary


class Ready(_InRun):
    """A worker can compute: fingerprint, libraries, slowest piece of work in seconds."""

    fingerprint: field.Name
    libraries: field.Texts
    slowest: field.Number


class Refused(_Structure):
    """The server refuses this peer for good."""

    reason: field.Text


class Reset(_InRun):
    """The server does not know the peer in that term: it has to discard all and send Hello."""


class Grant(_InRun):
    """A unit to compute, with its inputs: hidden states and ids of its shards.

    The lease is of the shards `lease_first` … `lease_last`; those that are accepted already are not
    granted. A repeated grant is answered with the same bytes.
    """

    lease: field.Integer
    lease_first: field.Integer
    lease_last: field.Integer
    first: field.Integer
    last: field.Integer
    step: field.Integer
    fresh: field.Flag
    weights: ParametersFrame
    hidden: HiddenFrame
    ids: IdsFrame


class NewWeights(_InRun, packed=True):
    """The weights of a step, and the next unit of a holder: all shards of its lease."""

    lease: field.Integer
    first: field.Integer
    last: field.Integer
    step: field.Integer
    fresh: field.Flag
    weights: ParametersFrame
    ids: IdsFrame


class Weights(_InRun):
    """Weights after `version` updates, to an observer."""

    version: field.Integer
    weights: ParametersFrame


class Revoke(_InRun):
    """The lease has ended. The unit in hand may still be sent."""

    lease: field.Integer


class UnitResult(_InRun, packed=True):
    """What a worker computed: a `Payload`; `seconds` is how long a shard took."""

    lease: field.Integer
    first: field.Integer
    last: field.Integer
    step: field.Integer
    weights_digest: field.Word
    seconds: field.Number
    payload: PayloadFrame


class Payload(NamedTuple):
    """The tensors of a unit's result, in this order in one frame.

    `sums` are the gradient's over the nodes of the range's cover; the others are by shard: the next
    hidden state, the loss, summed over its streams, and the digest of the input hidden state.
    """

    sums: Sequence[Frame]
    hidden: Sequence[Frame]
    losses: Sequence[float]
    digests: Sequence[bytes]

    def pack(self) -> bytes:
        losses = struct.pack(f"<{len(self.losses)}d", *self.losses)
        return b"".join([*self.sums, *self.hidden, losses, *self.digests])

    @classmethod
    def of(cls, result: UnitResult, size: Dimensions) -> "Payload":
        """Return views on a result's frame, whose length the codec has checked."""
        nodes = len(cover(size.shards, (result.first, result.last)))
        count = result.last - result.first + 1
        view = memoryview(result.payload)
        sums, at = _cut(view, 0, nodes, size.parameters_bytes)
        hidden, at = _cut(view, at, count, size.hidden_bytes)
        losses = struct.unpack_from(f"<{count}d", view, at)
        digests, _ = _cut(view, at + count * field.LOSS_BYTES, count, field.DIGEST_BYTES)
        return cls(sums, hidden, losses, [bytes(each) for each in digests])


def _cut(view: memoryview, start: int, count: int, length: int) -> tuple[list[memoryview], int]:
    ends = range(start + length, start + length * count + 1, length)
    return [view[end - length : end] for end in ends], start + length * count


class Heartbeat(_InRun):
    """A peer's progress: seconds of its slowest piece of work and of all computing, its units."""

    slowest: field.Number
    computing: field.Number
    units: Units


class Alive(_InRun):
    """The server's answer to a heartbeat."""


class Goodbye(_InRun):
    """A peer leaves in good order; a worker returns its leases."""

    reason: field.Text


class Stop(_InRun):
    """An observer asks the server to end its step, write a checkpoint and finish."""


class WeightsRequest(_InRun):
    """An observer asks for the newest weights."""


class Unban(_InRun):
    """An observer asks the server to lift the ban of a worker's or key's name."""

    name: field.Name


class Unbanned(_InRun):
    """The server's answer to Unban: one line for the user."""

    text: field.Text


class WorkerStats(NamedTuple):
    """One worker's use of time since it joined, in seconds: `present` is the total.

    `computing` is as the worker reports it, `waiting` without anything to compute, `late` the time
    that the step has waited for it. `gradients` counts accepted ones, `dropped` messages.
    """

    name: field.Name
    host: field.Text
    state: field.Name
    leases: field.Integer
    gradients: field.Integer
    dropped: field.Integer
    present: field.Number
    computing: field.Number
    waiting: field.Number
    late: field.Number

    @property
    def exchanging(self) -> float:
        """Seconds that went neither into computing nor into waiting."""
        return max(0.0, self.present - self.computing - self.waiting)


# 17 fields: one figure each.
class Status(_InRun):
    """The run's figures, and one page of the statistics of its `total` workers.

    Losses are nats a stream, `seconds` the training time of the run, `checkpoint` the step of the
    newest one on disk. `validated` is the newest one with a validation loss (`validation`, nats a
    character), `best` the one with the lowest; None before there is one. `waiting_for` is what the
    run is waiting for, empty while no step is late. `counts` is by Counter, and by COUNTER:SENDER.
    The page begins with worker `first`; `first` = `total` where only the figures are sent.
    """

    step: field.Integer
    steps: field.Integer
    loss: field.AnyNumber
    smooth_loss: field.AnyNumber
    characters: field.Integer
    seconds: field.Number
    checkpoint: field.Integer
    checkpoint_age: field.Number
    validated: field.Integer | None
    validation: field.AnyNumber | None
    best: field.Integer | None
    idle_workers: field.Integer
    waiting_for: field.Text
    counts: field.Counts
    first: field.Integer
    total: field.Integer
    workers: Annotated[tuple[WorkerStats, ...], field.AtMost(PAGE_LENGTH)]


class Notice(_InRun):
    """One log line for the observers."""

    level: Level
    text: field.Text


class Done(_InRun):
    """The server has ended the run, with this exit code: not 0 where the run may be resumed."""

    code: field.Integer
    reason: field.Text


FromMember = Ready | UnitResult | Heartbeat | Goodbye | Stop | WeightsRequest | Unban
FromServer = (
    Welcome
    | Refused
    | Reset
    | Grant
    | NewWeights
    | Weights
    | Revoke
    | Alive
    | Status
    | Notice
    | Unbanned
    | Done
)
Message = Hello | FromMember | FromServer
