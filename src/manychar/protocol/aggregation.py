"""The run's state and its open step: which units are wanted, accepted, summed and applied.

With s steps applied, step s is open: it is computed on weights s. A unit counts, from any sender,
if it names the weights and hidden states that the server itself holds for that step. The first
result of a shard counts; the sum of a node of the unit's cover replaces what is held below it,
where no complete node contains it already. Hidden states are committed when the step is applied.
"""

import dataclasses
import math
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.clipped_adagrad import all_finite
from manychar.numerics.corpus import Streams
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import TrainingState, apply
from manychar.numerics.tree_reduction import Range, TreeSum, cover, sum_in_tree
from manychar.protocol.counters import Counter
from manychar.protocol.effects import Compute
from manychar.protocol.messages import Frame, Identities, UnitResult
from manychar.protocol.range_cut import numbers_of
from manychar.protocol.unit_payload import as_frame, digest, equal_parts, folded_digest

STEPS_COMPARED = 8
KEPT_BYTES = 2**22  # payloads of past steps: most of their sums are never compared
INPUT_BYTES = 2**25  # weights and hidden states of past steps, to compute what is disputed again

Digests = dict[int | Range, Any]
"""By shard: its loss to the last bit and its next hidden state's digest. By node: its digest."""


@dataclasses.dataclass
class _Step:
    """What is remembered of one step: its inputs, and what was accepted from whom.

    `inputs` are the weights, the hidden states, and those after the step, as far as they are known;
    None where the step is too old to compute again.
    `delivered` has the sums of nodes as they came; `digests` replaces them where the frames of
    past steps are many. Digests are computed when they are needed, or no step waits for them.
    """

    inputs: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None
    weights_digest: bytes = b""
    hidden_digests: list[bytes] = dataclasses.field(default_factory=list)
    senders: dict[int, Identities] = dataclasses.field(default_factory=dict)
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    delivered: dict[Range, tuple[Identities, Frame]] = dataclasses.field(default_factory=dict)
    payload_bytes: int = 0
    digests: dict[Range, tuple[Identities, bytes]] = dataclasses.field(default_factory=dict)

    def compute_digests(self) -> None:
        """Compute those of the inputs, once."""
        if self.inputs is not None and not self.weights_digest:
            weights, hidden, _ = self.inputs
            self.weights_digest = folded_digest(as_frame(weights))
            parts = equal_parts(as_frame(hidden), len(hidden))
            self.hidden_digests = self.hidden_digests or list(map(digest, parts))

    def digest_delivered(self) -> None:
        for node, (sender, frame) in self.delivered.items():
            self.digests[node] = sender, folded_digest(frame)
        self.delivered.clear()
        self.payload_bytes = 0

    def names(self) -> set[str]:
        """Return the names of all senders of it, and of their keys."""
        of_nodes = [sender for sender, _ in [*self.delivered.values(), *self.digests.values()]]
        return {name for sender in [*self.senders.values(), *of_nodes] for name in sender}


# Many methods and attributes: one state, whose parts change together when a step is applied.
class Aggregation:
    """A run's state and its open step; `limit` is the first step that is never computed."""

    knows_next_ids = True

    def __init__(
        self, definition: Definition, corpus: Streams, state: TrainingState, *, limit: float
    ) -> None:
        self.definition = definition
        self.corpus = corpus
        self.state = state
        self.limit = limit
        self.loss = math.nan
        self._dtype = np.dtype(definition.dtype).newbyteorder("<")
        self._steps: dict[int, _Step] = {}
        inputs = state.parameters.flat.nbytes + state.hidden.nbytes
        self.steps_compared = min(STEPS_COMPARED, max(1, INPUT_BYTES // inputs))
        self._start_step()

    def _start_step(self) -> None:
        """Open the next step, and forget what is too old to compare.

        Of each step one array holds all hidden states, from their acceptance on: for the state,
        its checkpoint, grants and conflicts. Where the states are large, fewer steps are kept.
        """
        step, weights, hidden = self.state.step, self.state.parameters.flat, self.state.hidden
        self.wanted: Collection[int] = range(self.definition.shards)
        self._next_hidden = np.empty_like(hidden)
        self._open = self._steps[step] = _Step((weights, hidden, self._next_hidden))
        oldest = step - self.steps_compared
        for past in [each for each in self._steps if each < oldest]:
            self._steps[past].inputs = None
            if past < step - STEPS_COMPARED:
                del self._steps[past]
        self.weights = as_frame(weights)
        self._is_digested = False
        self._next_rows = self._next_hidden.reshape(self.definition.shards, -1)
        self._sums: TreeSum[NDArray[Any]] = TreeSum(self.definition.shards)

    def missing(self) -> list[int]:
        """Return the shards whose gradients of the open step are still wanted."""
        wanted = () if self.closed else self.wanted
        return [shard for shard in wanted if shard not in self._open.senders]

    def is_missing(self, shard: int) -> bool:
        return shard not in self._open.senders and shard in self.wanted and not self.closed

    def close(self) -> None:
        """Want nothing more: the run ends with the state as it is."""
        self.limit = self.state.step

    @property
    def closed(self) -> bool:
        return self.state.step >= self.limit

    @property
    def weights_digest(self) -> bytes:
        self._open.compute_digests()
        return self._open.weights_digest

    def digest_of(self, weights: Frame) -> bytes:
        """Return the digest of weights; computed once for the open step's."""
        return self.weights_digest if weights is self.weights else folded_digest(weights)

    def ids(self, first: int, last: int, step: int) -> memoryview:
        return as_frame(self.corpus.ids_at(first, last, step))

    def is_fresh_at(self, step: int) -> bool:
        return self.corpus.is_fresh(step)

    def assess(self, result: UnitResult) -> Counter | None:
        """Return None where this result is wanted, else as what it is counted."""
        open_step = self.state.step
        if result.step > open_step or (result.step == open_step and self.closed):
            return Counter.UNITS_NOT_OPEN
        step = self._steps.get(result.step)
        if step is None or step.inputs is None:
            return Counter.UNITS_NOT_COMPARED
        step.compute_digests()
        inputs = b"".join(step.hidden_digests[result.first : result.last + 1])
        if (result.weights_digest, result.payload.digests) != (step.weights_digest, inputs):
            return Counter.UNITS_FROM_WRONG_STATE
        if not step.senders.keys().isdisjoint(numbers_of(result.shards)):
            repeat = self._compare(result)
            if repeat is not None:
                return repeat
        losses_are_finite = all(map(math.isfinite, result.payload.losses))
        finite = losses_are_finite and all_finite(self._array(result.payload.hidden))
        return None if finite else Counter.UNITS_NOT_FINITE

    def _compare(self, result: UnitResult) -> Counter | None:
        """Compare it with what was accepted; None where that is the same, and more is here."""
        known: Digests = {}
        for _, digests in self.accepted(result.step, result.shards):
            known |= digests
        here = self.digests_of(result)
        if any(known[each] != here[each] for each in here.keys() & known.keys()):
            return Counter.UNITS_CONFLICTING
        if any(shard not in known for shard in numbers_of(result.shards)):
            return None
        compared = any(node in known for node in self._cover(result))
        return Counter.UNITS_REPEATED if compared else Counter.UNITS_NOT_COMPARED

    def accept(self, result: UnitResult, sender: Identities) -> list[int]:
        """Add a result that was assessed as wanted; return the shards that are accepted now."""
        step, payload = self._open, result.payload
        # A view of a sum holds all of its frame.
        step.payload_bytes += sum(map(len, payload.sums)) + len(payload.hidden)
        new = []
        for node, frame in zip(self._cover(result), payload.sums, strict=True):
            if self._sums.container(node) is None:
                self._sums.put(node, self._array(frame))
                step.delivered[node] = sender, frame
                new += [i for i in numbers_of(node) if i not in step.senders]
        hidden = self._array(payload.hidden).reshape(len(payload.losses), -1)
        for shard in new:
            place = shard - result.first
            self._next_rows[shard] = hidden[place]  # a copy, never a view of a received frame
            step.senders[shard] = sender
            step.losses[shard] = payload.losses[place]
        return new

    def compute_digests(self) -> None:
        """Compute digests, for which no step has to wait."""
        if self._is_digested:
            return
        self._is_digested = True
        self._open.compute_digests()
        kept = KEPT_BYTES
        for step in reversed(self._steps.values()):
            kept -= step.payload_bytes
            if kept < 0 and step is not self._open:
                step.digest_delivered()

    @property
    def complete(self) -> bool:
        return len(self._open.senders) == self.definition.shards

    def apply(self) -> None:
        """Apply the open step, which is complete, and open the next one.

        NotFiniteError: the mean gradient is not finite; nothing has changed.
        """
        losses = [self._open.losses[shard] for shard in range(self.definition.shards)]
        loss_sum = sum_in_tree(losses)
        self.state = apply(
            self.state,
            self.definition,
            gradient_halves=self._sums.halves(),
            loss_sum=loss_sum,
            hidden=self._next_hidden,
        )
        self.loss = loss_sum / self.definition.total_streams
        self._start_step()

    def not_finite(self) -> list[tuple[Identities, Range]]:
        """Return the delivered nodes of the open step with values that are not finite."""
        return [
            (sender, node)
            for node, (sender, frame) in self._open.delivered.items()
            if not all_finite(self._array(frame))
        ]

    def accepted(self, step: int, shards: Range) -> list[tuple[Identities, Digests]]:
        """Return the digests of accepted shards and nodes within a range, each with its sender."""
        record = self._steps[step]
        if record.inputs is None:
            raise KeyError(f"step {step:,} is too old to compare")
        first, last = shards
        hidden = record.inputs[2]
        found: list[tuple[Identities, Digests]] = [
            (sender, {i: (record.losses[i].hex(), digest(as_frame(hidden[i])))})
            for i, sender in record.senders.items()
            if first <= i <= last
        ]
        sums = {
            node: (sender, folded_digest(frame))
            for node, (sender, frame) in record.delivered.items()
        }
        for node, (sender, of_sum) in (record.digests | sums).items():
            if first <= node[0] and node[1] <= last:
                found.append((sender, {node: of_sum}))
        return found

    def digests_of(self, result: UnitResult) -> Digests:
        payload = result.payload
        hidden = equal_parts(payload.hidden, len(payload.losses))
        shards = zip(numbers_of(result.shards), payload.losses, hidden, strict=True)
        digests: Digests = {i: (loss.hex(), digest(each)) for i, loss, each in shards}
        nodes = zip(self._cover(result), payload.sums, strict=True)
        return digests | {node: folded_digest(frame) for node, frame in nodes}

    def first_from(self, senders: AbstractSet[str], *, at_most: float) -> float:
        """Return the lowest remembered step that any of them had a part in, or `at_most`."""
        steps = [step for step, past in self._steps.items() if senders & past.names()]
        return min([at_most, *steps])

    def compute_again(self, shard: int, step: int) -> Compute:
        """Have a shard computed here, of a step that is remembered with its inputs."""
        inputs = self._steps[step].inputs
        if inputs is None:
            raise KeyError(f"step {step:,} is too old to compute again")
        weights, hidden, _ = inputs
        batch = self.corpus.batch_at(shard, step)
        return Compute(
            shard=shard,
            step=step,
            fresh=batch.fresh,
            weights=as_frame(weights),
            hidden=as_frame(hidden[shard]),
            ids=as_frame(batch.ids),
        )

    def _cover(self, result: UnitResult) -> tuple[Range, ...]:
        return cover(self.definition.shards, result.shards)

    def _array(self, frame: Frame) -> NDArray[Any]:
        return np.frombuffer(frame, dtype=self._dtype)
