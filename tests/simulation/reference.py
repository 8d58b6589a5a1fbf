"""What a simulated run must come to: the tiny model's trajectory, computed once a definition.

A run is a function of its definition alone. So the single-process trainer tells, for every shard
and step, the one gradient that may be counted, the one hidden state that may be handed on, for
every node of the tree its one sum, and for every step the one state of the server.
"""

import dataclasses
import functools
import random

import numpy as np

from manychar.numerics.corpus import Batch, Streams
from manychar.numerics.kernel import Kernel
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import TrainingState, advance, compute_shard, kernel_of, start
from manychar.numerics.tree_reduction import Range
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.effects import Compute
from manychar.protocol.events import Computed
from manychar.protocol.messages import UnitResult
from manychar.protocol.unit_payload import Payload, digest, folded_digest
from tests.encoding import encode

HIDDEN, LETTERS, SEQ_LENGTH = 4, "abcde", 3
MOST_STEPS = 11


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one shard at one step comes to, as bytes, and the digest of the weights it used."""

    weights_digest: bytes
    loss: float
    gradient: bytes
    hidden: bytes

    def computed(
        self, shard: int, step: int, *, seconds: float = 0.0, longest_piece: float | None = None
    ) -> Computed:
        """Return the event by which a machine is told of it."""
        return Computed(
            shard=shard,
            step=step,
            weights_digest=self.weights_digest,
            loss=self.loss,
            gradient=np.frombuffer(self.gradient, "<f4"),
            hidden=self.hidden,
            longest_piece=seconds if longest_piece is None else longest_piece,
            seconds=seconds,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """One definition's run. Lists are by step; `hidden` by step, then shard; `sums` by node."""

    definition: Definition
    streams: Streams
    vocabulary: str
    states: list[TrainingState]
    pieces: dict[tuple[int, int], Piece]
    sums: list[dict[Range, bytes]]
    hidden: list[list[bytes]]
    weights: list[bytes]
    state_bytes: list[tuple[bytes, ...]]

    @functools.cache  # noqa: B019 - references are few, and kept
    def halves(self, node: Range) -> list[Range]:
        """Return the two largest nodes below a node; of a shard there is none."""
        inside = [each for each in self.sums[0] if node[0] <= each[0] and each[1] <= node[1]]
        return [each for each in inside if each != node and _is_largest(each, inside, but=node)]

    @functools.cache  # noqa: B019
    def cover(self, first: int, last: int) -> list[Range]:
        """Return the largest nodes whose shards are in a range, in order."""
        inside = [node for node in self.sums[0] if first <= node[0] and node[1] <= last]
        return sorted(node for node in inside if _is_largest(node, inside))

    def result(self, like: UnitResult, step: int, first: int, last: int) -> UnitResult:
        """Return the right result of a unit, under no lease, in the term and session of another."""
        return UnitResult(
            **like.run_and_term,
            lease=0,
            first=first,
            last=last,
            step=step,
            weights_digest=self.pieces[first, step].weights_digest,
            seconds=0.0,
            payload=self.payload(step, first, last),
        )

    def payload(self, step: int, first: int, last: int) -> Payload:
        """Return what a worker sends for these shards."""
        pieces = [self.pieces[shard, step] for shard in range(first, last + 1)]
        return Payload(
            sums=tuple(self.sums[step][node] for node in self.cover(first, last)),
            hidden=b"".join(piece.hidden for piece in pieces),
            losses=tuple(piece.loss for piece in pieces),
            digests=b"".join(digest(each) for each in self.hidden[step][first : last + 1]),
        )


def _is_largest(node: Range, among: list[Range], *, but: Range | None = None) -> bool:
    """Whether no other node contains this one, `but` aside."""
    others = [each for each in among if each not in (node, but)]
    return not any(first <= node[0] and node[1] <= last for first, last in others)


def bytes_of(state: TrainingState) -> tuple[bytes, ...]:
    """Return everything in a state, named by place: weights, memory, hidden, loss."""
    return (
        state.parameters.flat.tobytes(),
        state.memory.tobytes(),
        state.hidden.tobytes(),
        state.smooth_loss.hex().encode(),
    )


@functools.cache
def reference(shards: int, streams: int, length: int) -> Reference:
    """Train the tiny model in one go; `length` is the characters of one stream."""
    letters = random.Random(length)  # noqa: S311
    more = shards * streams * length - len(LETTERS)
    vocabulary, ids = encode(LETTERS + "".join(letters.choice(LETTERS) for _ in range(more)))
    definition = Definition(
        corpus_sha256="0" * 64,
        hidden=HIDDEN,
        seq_length=SEQ_LENGTH,
        shards=shards,
        streams=streams,
        validation=1e-9,  # validated by the world itself; the streams are the whole text
    )
    cut = Streams(ids, shards, streams, SEQ_LENGTH)
    states = [start(definition, len(vocabulary))]
    kernel = kernel_of(definition, len(vocabulary))
    pieces = {}
    for step in range(MOST_STEPS):
        pieces.update(_pieces_of(states[step], cut, kernel))
        states.append(advance(states[step], definition, cut, kernel))
    return Reference(
        definition=definition,
        streams=cut,
        vocabulary=vocabulary,
        states=states,
        pieces=pieces,
        sums=[
            _sums([pieces[shard, step].gradient for shard in range(shards)])
            for step in range(MOST_STEPS)
        ],
        hidden=[[shard.tobytes() for shard in state.hidden] for state in states],
        weights=[state.parameters.flat.tobytes() for state in states],
        state_bytes=[bytes_of(state) for state in states],
    )


def _pieces_of(
    state: TrainingState, streams: Streams, kernel: Kernel
) -> dict[tuple[int, int], Piece]:
    kernel.load(state.parameters.flat)
    weights_digest = folded_digest(state.parameters.flat.tobytes())
    pieces = {}
    for shard, hidden in enumerate(state.hidden):
        batch = streams.batch_at(shard, state.step)
        loss, gradient, after = compute_shard(kernel, batch, hidden)
        pieces[shard, state.step] = Piece(
            weights_digest, loss, gradient.flat.tobytes(), after.tobytes()
        )
    return pieces


def _sums(gradients: list[bytes]) -> dict[Range, bytes]:
    """Return the sums of all nodes: adjacent pairs, level by level, an odd last one carried up."""
    level = [((i, i), np.frombuffer(each, "<f4")) for i, each in enumerate(gradients)]
    nodes = dict(level)
    while len(level) > 1:
        odd = level[len(level) - len(level) % 2 :]
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [((a[0], b[1]), left + right) for (a, left), (b, right) in pairs] + odd
        nodes |= dict(level)
    return {node: total.tobytes() for node, total in nodes.items()}


@functools.cache
def _kernel(size: Dimensions) -> Kernel:
    return Kernel(
        size.vocabulary_size,
        size.hidden,
        seq_length=size.seq_length,
        streams=size.streams,
        dtype=size.dtype,
    )


_computed: dict[tuple[bytes, bytes, bytes, bool, int], Piece] = {}


def compute(unit: Compute, size: Dimensions) -> Piece:
    """Do what a shell does with Compute, from the unit's own bytes; what recurs is kept."""
    weights, hidden, ids = bytes(unit.weights), bytes(unit.hidden), bytes(unit.ids)
    key = (weights, hidden, ids, unit.fresh, size.vocabulary_size)
    if key not in _computed:
        kernel = _kernel(size)
        kernel.load(np.frombuffer(weights, size.dtype))
        batch = Batch(
            np.frombuffer(ids, np.uint8).reshape(size.streams, size.seq_length + 1), unit.fresh
        )
        before = np.frombuffer(hidden, size.dtype).reshape(size.streams, size.hidden).copy()
        loss, gradient, after = compute_shard(kernel, batch, before)
        _computed[key] = Piece(
            folded_digest(weights), loss, gradient.flat.tobytes(), after.tobytes()
        )
    return _computed[key]
