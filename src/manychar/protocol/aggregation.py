"""The run's state and its open step: which gradients are wanted, accepted, summed and applied.

With s steps applied, step s is open: it is computed on weights s. The first gradient of a (step,
shard) counts, from any sender, if it names the hidden state that the server itself holds for that
step. Gradients are summed in the tree as they come; hidden states are committed when the step is
applied.
"""

import enum
import math
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.checksum import checksum
from manychar.numerics.corpus import Batch, Streams
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import TrainingState, apply
from manychar.numerics.tree_reduction import TreeSum
from manychar.protocol.counters import Counter
from manychar.protocol.effects import Compute
from manychar.protocol.events import Computed, MailboxEmpty
from manychar.protocol.messages import Frame, Gradient, Identities, digest

STEPS_COMPARED = 8
INPUT_BYTES = 2**25  # weights and hidden states of past steps, to compute what is disputed again

ResultDigest = tuple[int, str, int]
"""The gradient's checksum, the loss to its last bit, and the next hidden state's checksum."""


class Assessment(enum.Enum):
    """What a gradient is to the run; the value is its counter."""

    WANTED = "accepted"
    REPEAT = Counter.GRADIENTS_REPEATED.value
    REPEAT_DIFFERS = Counter.GRADIENTS_CONFLICTING.value
    REPEAT_TOO_OLD = Counter.GRADIENTS_NOT_COMPARED.value
    NOT_OPEN = Counter.GRADIENTS_NOT_OPEN.value
    FROM_ANOTHER_STATE = Counter.GRADIENTS_FROM_WRONG_STATE.value
    NOT_FINITE = Counter.GRADIENTS_NOT_FINITE.value


# 19 methods, 14 attributes: one state, whose parts change together when a step is applied.
class Aggregation:
    """A run's state and its open step; `limit` is the first step that is never computed."""

    def __init__(
        self, definition: Definition, corpus: Streams, state: TrainingState, *, limit: float
    ) -> None:
        self.definition = definition
        self.corpus = corpus
        self.state = state
        self.limit = limit
        self.loss = math.nan
        self._dtype = np.dtype(definition.dtype).newbyteorder("<")
        self._inputs: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._senders: dict[int, dict[int, Identities]] = {}
        self._digests: dict[int, dict[int, ResultDigest]] = {}
        self._undigested: list[Gradient] = []
        inputs = state.parameters.flat.nbytes + state.hidden.nbytes
        self.steps_compared = min(STEPS_COMPARED, max(1, INPUT_BYTES // inputs))
        self._open()

    def _open(self) -> None:
        """Open the next step, and forget what is too old to compare.

        Of each step one array holds all hidden states, from their acceptance on: for the state,
        its checkpoint, grants and disputes. Where the states are large, fewer steps are kept.
        """
        step = self.state.step
        self._inputs[step] = self.state.parameters.flat, self.state.hidden
        self._inputs.pop(step - self.steps_compared - 1, None)
        for accepted in (self._senders, self._digests):
            accepted[step] = {}
            accepted.pop(step - STEPS_COMPARED - 1, None)
        self._next_hidden = np.empty_like(self.state.hidden)
        self._gradients: TreeSum[NDArray[Any]] = TreeSum(self.definition.shards)
        self._losses: TreeSum[float] = TreeSum(self.definition.shards)

    def is_missing(self, shard: int) -> bool:
        """Whether the shard's gradient of the open step is still wanted."""
        return not self.closed and shard not in self._senders[self.state.step]

    def close(self) -> None:
        """Want no more gradients: the run ends with the state as it is."""
        self.limit = self.state.step

    @property
    def closed(self) -> bool:
        return self.state.step >= self.limit

    @property
    def weights(self) -> memoryview:
        """The bytes of the weights that the open step is computed on."""
        return as_frame(self.state.parameters.flat)

    def hidden(self, shard: int) -> memoryview:
        """Return the bytes of the hidden state that the shard's open step starts from."""
        return as_frame(self.state.hidden[shard])

    def batch(self, shard: int) -> Batch:
        return self.corpus.batch_at(shard, self.state.step)

    def assess(self, gradient: Gradient) -> Assessment:
        """Return whether this gradient of an existing shard is wanted, or why not."""
        step, shard = gradient.step, gradient.shard
        is_accepted = shard in self._senders.get(step, ())
        if step not in self._inputs or not is_accepted:
            if step < self.state.step:
                return Assessment.REPEAT_TOO_OLD
            if step > self.state.step or self.closed:
                return Assessment.NOT_OPEN
        if not self._is_from_here(gradient):
            return Assessment.FROM_ANOTHER_STATE
        if is_accepted:
            _, accepted = self.accepted(shard, step)
            same = accepted == digest_of(gradient)
            return Assessment.REPEAT if same else Assessment.REPEAT_DIFFERS
        arrays = self._array(gradient.gradient), self._array(gradient.hidden)
        finite = math.isfinite(gradient.loss) and all(map(_all_finite, arrays))
        return Assessment.WANTED if finite else Assessment.NOT_FINITE

    def _is_from_here(self, gradient: Gradient) -> bool:
        """Whether it was computed from the hidden state that is held here."""
        _, hidden = self._inputs[gradient.step]
        return gradient.hidden_digest == digest(as_frame(hidden[gradient.shard]))

    def accept(self, gradient: Gradient, sender: Identities) -> None:
        """Add a gradient that was assessed as WANTED."""
        hidden = self._next_hidden[gradient.shard].reshape(-1)
        hidden[:] = self._array(gradient.hidden)  # never a view of a received frame
        self._senders[gradient.step][gradient.shard] = sender
        self._undigested.append(gradient)
        if len(self._undigested) > self.definition.shards:
            self._digest_accepted()  # the limit where a mailbox never runs empty
        self._gradients.add(gradient.shard, self._array(gradient.gradient))
        self._losses.add(gradient.shard, gradient.loss)

    def mailbox_empty(self, event: MailboxEmpty, now: float) -> None:
        """Compute the missing digests: some 30 us for 120 kB, for which no step has to wait.

        The frames of the gradients are released.
        """
        self._digest_accepted()

    def _digest_accepted(self) -> None:
        for gradient in self._undigested:
            self._digests[gradient.step][gradient.shard] = digest_of(gradient)
        self._undigested.clear()

    @property
    def complete(self) -> bool:
        return self._gradients.complete

    def apply(self) -> None:
        """Apply the open step, which is complete, and open the next one."""
        self.state = apply(
            self.state,
            self.definition,
            gradient_halves=self._gradients.halves(),
            loss_sum=self._losses.result(),
            hidden=self._next_hidden,
        )
        self.loss = self._losses.result() / self.definition.total_streams
        self._open()

    def accepted(self, shard: int, step: int) -> tuple[Identities, ResultDigest]:
        """Return an accepted gradient's sender and digest; KeyError where it is too old."""
        self._digest_accepted()
        return self._senders[step][shard], self._digests[step][shard]

    def first_from(self, senders: AbstractSet[str], *, at_most: float) -> float:
        """Return the lowest remembered step that any of them had a part in, or `at_most`."""
        steps = [
            step
            for step, of_shards in self._senders.items()
            for sender in of_shards.values()
            if not senders.isdisjoint(sender)
        ]
        return min([at_most, *steps])

    def compute_again(self, shard: int, step: int) -> Compute:
        """Have a unit computed here that was accepted; KeyError where it is too old."""
        batch = self.corpus.batch_at(shard, step)
        weights, hidden = self._inputs[step]
        return Compute(
            shard=shard,
            step=step,
            fresh=batch.fresh,
            weights=as_frame(weights),
            hidden=as_frame(hidden[shard]),
            ids=as_frame(batch.ids),
        )

    def _array(self, frame: Frame) -> NDArray[Any]:
        return np.frombuffer(frame, dtype=self._dtype)


def as_frame(array: NDArray[Any]) -> memoryview:
    """Return the little-endian bytes of a contiguous array that is never written to; no copy."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little.data.cast("B")


def _all_finite(array: NDArray[Any]) -> bool:
    """Whether all values are finite; fast where the sum of their squares is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.dot(array, array)) or bool(np.isfinite(array).all())


def digest_of(result: Gradient | Computed) -> ResultDigest:
    """Return a result's digest: two results of one unit must have the same."""
    return checksum(result.gradient), result.loss.hex(), checksum(result.hidden)
