"""The messages: adding one, or a field, is a change here alone (`codec.py` derives the bytes).

`term` rises each time the server of a run starts, and `session` is its random number: another one
is another term. A unit is a range of shards at one step. Tensors are raw and little-endian, in the
shapes that `Dimensions` gives.
"""

import enum
import functools
from typing import Annotated, Any, NamedTuple, TypedDict

from manychar.numerics.tree_reduction import Range
from manychar.protocol import dimensions
from manychar.protocol import field_types as field
from manychar.protocol.dimensions import Dimensions, Structure
from manychar.protocol.unit_payload import DigestsFrame, PayloadField
from manychar.protocol.worker_tally import WorkerStats

WIRE_VERSION = 8  # rises with every release that changes the messages

Frame = field.Frame
Peer = bytes  # the transport's identity of one connection
HOST_LENGTH = 64
PAGE_LENGTH = 7  # workers in one Status: with the longest names and all counts they fit its header


def one_line(text: str) -> str:
    """Return a text as a message can carry it: printable, on one line, not too long."""
    return "".join(c if c.isprintable() else " " for c in text)[: field.TEXT_LENGTH]


RELAYS = "relays"
"""The key in a Hello's `machine` by which a relay says that it is one: itself and those below."""


class Role(enum.StrEnum):
    """The role of a peer."""

    WORKER = "worker"
    OBSERVER = "observer"


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


Units = Annotated[tuple[Unit, ...], field.Records(Unit, dimensions.most_units)]
Vocabulary = Annotated[Frame, field.Tensor(lambda *_: 4 * 0x110000, exact=False)]


class RunAndTerm(TypedDict):
    """The fields by which a message belongs to one server of one run."""

    run_id: str
    term: int
    session: int


class _InRun(Structure):
    """The fields of every message of a run's member or server."""

    run_id: field.Name
    term: field.Integer
    session: field.Integer

    @functools.cached_property
    def run_and_term(self) -> RunAndTerm:
        return {"run_id": self.run_id, "term": self.term, "session": self.session}


class _OfUnit(_InRun):
    """The fields of a message about the shards `first` … `last` at one step."""

    first: field.Integer
    last: field.Integer
    step: field.Integer

    @property
    def shards(self) -> Range:
        return self.first, self.last


def unit_fields(
    run_and_term: RunAndTerm, *, lease: int, shards: Range, step: int
) -> dict[str, Any]:
    """Return the fields that name the shards `first` … `last` at one step, under a lease."""
    first, last = shards
    return {**run_and_term, "first": first, "last": last, "step": step, "lease": lease}


class Hello(Structure):
    """A client asks to be admitted. Its fields never change, so that every version reads it."""

    wire: field.Integer
    role: field.Name
    name: field.Name
    instance: field.Name
    machine: field.Texts


class Welcome(_InRun):
    """The run, its term and sizes, the numerics to pin; `silence` is the lease timeout in s.

    Observers get the vocabulary (UTF-8) as well, to draw samples with. A relay admits workers by
    the run's fingerprint; `relays` are the instances of those between the server and this client.
    """

    dimensions: Dimensions
    numerics: field.Name
    seed: field.Integer
    silence: field.Number
    vocabulary: Vocabulary
    fingerprint: field.Name
    libraries: field.Texts
    relays: field.Text = ""


class Ready(_InRun):
    """A worker can compute: fingerprint, libraries, longest piece of work in seconds."""

    fingerprint: field.Name
    libraries: field.Texts
    longest_piece: field.Number


class Refused(Structure):
    """The server refuses this peer for good."""

    reason: field.Text


class Reset(_InRun):
    """The server does not know the peer in that term: it has to discard all and send Hello."""


class Grant(_OfUnit):
    """A unit to compute, with its inputs: hidden states and ids of its shards.

    `number` counts the Grants and NewWeights that are sent to this peer.
    The lease is of the shards `lease_first` … `lease_last`; those that are accepted already are not
    granted. A repeated grant is answered with the same bytes.
    """

    number: field.Integer
    lease: field.Integer
    lease_first: field.Integer
    lease_last: field.Integer
    fresh: field.Flag
    weights: dimensions.ParametersFrame
    hidden: dimensions.HiddenFrame
    ids: dimensions.IdsFrame


class NewWeights(_OfUnit, packed=1, told=("number", "fresh")):
    """The weights of a step, and the next unit of a holder: all shards of its lease."""

    lease: field.Integer
    number: field.Integer
    fresh: field.Flag
    ids: dimensions.IdsFrame
    weights: dimensions.ParametersFrame


class Weights(_InRun):
    """Weights after `version` updates, to an observer."""

    version: field.Integer
    weights: dimensions.ParametersFrame


class Revoke(_InRun):
    """The lease has ended. The unit in hand may still be sent."""

    lease: field.Integer


class UnitResult(_OfUnit, packed=2, told=("seconds",)):
    """What a worker computed; `seconds` is how long a shard took."""

    lease: field.Integer
    weights_digest: field.Digest
    seconds: field.Number
    payload: PayloadField


class Heartbeat(_InRun):
    """A peer's progress: seconds of its longest piece of work, its units.

    `heard` is the highest number of a Grant or NewWeights that it received. A relay has `workers`
    below it, and `levels` of relays, its own included.
    """

    longest_piece: field.Number
    heard: field.Integer
    units: Units
    workers: field.Integer = 1
    levels: field.Integer = 0


class Alive(_InRun):
    """The server's answer to a heartbeat."""


class Dispute(_OfUnit):
    """Part of a unit that a relay sent is wrong: it names the worker. The digests are right."""

    digests: DigestsFrame


class Blame(_OfUnit):
    """A relay's answer to a Dispute: the worker's name and its key's; none are its sender's own."""

    name: field.Text
    key: field.Text


class Ban(_InRun):
    """A relay refuses workers and keys of this name from now on; without a reason, no longer."""

    name: field.Text
    reason: field.Text


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
    """The server's answer to Unban: one line for the user, and whether there was such a ban."""

    text: field.Text
    lifted: field.Flag


# Many fields: one figure each.
class Status(_InRun):
    """The run's figures, and one page of the statistics of its `total` workers.

    The loss is the mean of the last 100 steps at most, NaN before the first step of a term;
    `mean_loss` gives that of the steps between two messages, from the sum over the term's steps.
    `seconds` is the training time of the run, `checkpoint` the step of the newest one on disk.
    `validated` is the newest one with a validation loss, `best` the one with the lowest; None
    before there is one. `divergence` says that training diverges, `waiting_for` what the run is
    waiting for; empty where neither is so. `counts` is by Counter. The page
    begins with worker `first`; `first` = `total` where only the figures are sent.
    """

    step: field.Integer
    steps: field.Integer
    loss_nats_per_character: field.AnyNumber
    loss_sum_nats_per_character: field.AnyNumber
    characters: field.Integer
    seconds: field.Number
    checkpoint: field.Integer
    checkpoint_age_seconds: field.Number
    validated: field.Integer | None
    validation_loss_nats_per_character: field.AnyNumber | None
    smooth_loss_nats_per_character: field.AnyNumber
    best: field.Integer | None
    divergence: field.Text
    idle_workers: field.Integer
    waiting_for: field.Text
    counts: field.Counts
    first: field.Integer
    total: field.Integer
    workers: Annotated[tuple[WorkerStats, ...], field.AtMost(PAGE_LENGTH)]


class Done(_InRun):
    """The server has ended the run, with this exit code; 0: the run is finished."""

    code: field.Integer
    reason: field.Text


FromMember = (
    Ready | UnitResult | Heartbeat | Status | Blame | Goodbye | Stop | WeightsRequest | Unban
)
ToWorker = Grant | NewWeights | Revoke | Dispute | Ban
ToObserver = Weights | Status | Unbanned
Message = Hello | FromMember | Welcome | Refused | Reset | Alive | Done | ToWorker | ToObserver
