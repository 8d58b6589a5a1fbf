"""The messages, one paragraph each. How they become bytes is `codec.py`'s affair.

A run is named by `run`; `term` rises each time its server starts. Tensors travel as raw frames,
little-endian, in the shapes that `Dimensions` says; a step's identity is (run, term, step, shard).
"""

import dataclasses
import enum
import functools
import zlib
from collections.abc import Mapping
from typing import NamedTuple

WIRE_VERSION = 1
"""Rises with every release that changes the messages; two sides that differ refuse each other."""

Frame = bytes | bytearray | memoryview
"""Anything that holds raw bytes and can be sent as one frame."""

Peer = bytes
"""How the transport calls one connection."""


TEXT_LENGTH = 500
"""The longest text that a message carries, in characters."""


def one_line(text: str) -> str:
    """Return a text as a message can carry it: printable, on one line, not too long."""
    return "".join(c if c.isprintable() else " " for c in text)[:TEXT_LENGTH]


ROSTER_LENGTH = 7
"""How many workers one Roster tells of: with the longest names they fit into a header."""

DIGEST_BYTES = 4


def digest(frame: Frame) -> bytes:
    """Return a CRC-32: whether two sides hold the same bytes, against faults, not malice."""
    return zlib.crc32(frame).to_bytes(DIGEST_BYTES, "little")


class Role(enum.StrEnum):
    """What a peer is there for."""

    WORKER = "worker"
    OBSERVER = "observer"


class Level(enum.StrEnum):
    """How much a line matters to whoever watches, from the least on."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class KeyRole(enum.StrEnum):
    """What a key is for: a worker may send gradients, an observer only look, an operator stop."""

    WORKER = "worker"
    OBSERVER = "observer"
    OPERATOR = "operator"


class Owner(NamedTuple):
    """Whose key a connection was made with. The transport has proved it."""

    name: str
    role: KeyRole


Names = tuple[str, str]
"""What a worker is called, and whose key it has: its own name again where there are no keys."""


class UnitState(enum.IntEnum):
    """How far a worker is with one unit of its leases."""

    QUEUED = 0
    COMPUTING = 1
    SENT = 2


class Unit(NamedTuple):
    """One shard at one step, under a lease. `flag`: `fresh` from the server, a UnitState to it."""

    lease: int
    shard: int
    step: int
    flag: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The run's sizes: all that is needed to know the exact length of every tensor frame."""

    vocabulary_size: int
    hidden: int
    seq_length: int
    streams: int
    shards: int
    delay: int
    dtype: str

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hello:
    """A peer knocks. `instance` tells two lives of one name apart; `machine` describes the host."""

    wire: int
    role: str
    name: str
    instance: str
    machine: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Welcome:
    """The server's answer: the run, its term and sizes, and the numerics to pin before computing.

    `silence` is how long, in seconds, either side may say nothing before it is taken for lost.
    Observers are given the vocabulary (UTF-8) and the seed as well, to draw samples from.
    """

    run: str
    term: int
    steps: int
    dimensions: Dimensions
    numerics: str
    seed: int
    silence: float
    vocabulary: Frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker can compute: the fingerprint of its arithmetic, and what computed it.

    `slowest` is the longest time, in seconds, between two pieces of the probe's work.
    """

    run: str
    term: int
    fingerprint: str
    libraries: Mapping[str, str]
    slowest: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused:
    """The server will not have this peer, and says why. It need not come again."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reset:
    """The server does not know the peer, or not in that term: drop everything and say Hello."""

    run: str
    term: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grant:
    """A lease on a shard, from step `step` on: with its hidden state, ids and weights to begin.

    `version` is the step of the weights, max(0, step - D). Sent again, it elicits the same gradient
    again.
    """

    run: str
    term: int
    lease: int
    shard: int
    step: int
    version: int
    fresh: bool
    weights: Frame
    hidden: Frame
    ids: Frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights after `version` updates, and the units they let a worker compute, each with its ids.

    They acknowledge every gradient of a step below `version`. An observer gets them without units.
    """

    run: str
    term: int
    version: int
    weights: Frame
    units: tuple[Unit, ...]
    ids: tuple[Frame, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revoke:
    """The lease has gone to another worker. What is being computed under it may still be sent."""

    run: str
    term: int
    lease: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradient:
    """One shard's loss and gradient at one step, sums over its streams, and its next hidden state.

    `version` and `hidden_digest` name the weights and the hidden state it was computed from.
    """

    run: str
    term: int
    lease: int
    shard: int
    step: int
    version: int
    hidden_digest: bytes
    loss: float
    gradient: Frame
    hidden: Frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A peer lives: how far it is with each unit.

    `slowest` is its longest piece of work so far, `computing` all of its computing, in seconds.
    """

    run: str
    term: int
    slowest: float
    computing: float
    units: tuple[Unit, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alive:
    """The server's answer to a heartbeat."""

    run: str
    term: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goodbye:
    """A peer leaves in good order; a worker hands back its leases with it."""

    run: str
    term: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """An observer asks the server to end its step, write a checkpoint and finish."""

    run: str
    term: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """How the run stands: step, losses (nats a stream), characters and seconds since it began.

    `workers` are the names of those who hold leases, as many as fit; `counts` is what was dropped.
    `checkpoint` is the newest one on disk, for `checkpoint_age` seconds. `judged` is the newest one
    whose loss on the held-out text is known, `validation` nats a character there, and `best` the
    one with the least; None where there is none yet.
    """

    run: str
    term: int
    step: int
    steps: int
    loss: float
    smooth_loss: float
    characters: int
    seconds: float
    workers: tuple[str, ...]
    standing_by: int
    counts: Mapping[str, int]
    checkpoint: int
    checkpoint_age: float
    validated: int | None
    validation: float | None
    best: int | None


class WorkerStats(NamedTuple):
    """How one worker has spent its time since it joined, in seconds: `present` in all.

    It was `computing`, by its own word, and `waiting` while nothing was asked of it; the rest went
    into the exchange. The run's step has waited for it for `late` seconds, 0 if it does not.
    `units` is how many of its gradients counted, `dropped` how many of its messages did not.
    """

    name: str
    host: str
    state: str
    leases: int
    units: int
    dropped: int
    present: float
    computing: float
    waiting: float
    late: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roster:
    """Who is there: some of the `total` workers, from the one numbered `first` on.

    `waiting` says for whom the run waits; it is empty while a step takes less than four usual ones.
    """

    run: str
    term: int
    first: int
    total: int
    waiting: str
    workers: tuple[WorkerStats, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notice:
    """One line for whoever watches: something that happened, or for whom the run is waiting."""

    run: str
    term: int
    level: Level
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """The run has ended, or pauses in good order; `code` is the server's exit code.

    A worker ends with 0 where it is 0, else with 75: the run is not through and may go on.
    """

    run: str
    term: int
    code: int
    reason: str


FromMember = Ready | Gradient | Heartbeat | Goodbye | Stop
FromPeer = Hello | FromMember
FromServer = (
    Welcome | Refused | Reset | Grant | Weights | Revoke | Alive | Report | Roster | Notice | Done
)
Message = FromPeer | FromServer
