"""What a simulated run must come to: the tiny model's trajectory, computed once a definition.

A run is a function of its definition alone. So the single-process trainer tells, for every shard
and step, the one gradient that may be counted, the one hidden state that may be handed on, and for
every step the one state of the server.
"""

import dataclasses
import functools
import random

import numpy as np

from manychar.numerics.corpus import Batch, Streams, encode
from manychar.numerics.kernel import Kernel
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import TrainingState, advance, compute_shard, kernel_of, start
from manychar.protocol.effects import Compute
from manychar.protocol.events import Computed
from manychar.protocol.messages import Dimensions

HIDDEN, LETTERS, SEQ_LENGTH = 4, "abcde", 3
MOST_STEPS = 15


@dataclasses.dataclass(frozen=True)
class Piece:
    """One shard's gradient at one step, as bytes: what a worker sends."""

    loss: float
    gradient: bytes
    hidden: bytes

    def computed(self, shard: int, step: int, *, seconds: float = 0.0) -> Computed:
        """Return the event by which a machine is told of it."""
        return Computed(shard, step, self.loss, self.gradient, self.hidden, seconds, seconds)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """One definition's run. Lists are by step; `hidden` and `ids` by step, then shard."""

    definition: Definition
    streams: Streams
    vocabulary: str
    states: list[TrainingState]
    pieces: dict[tuple[int, int], Piece]
    hidden: list[list[bytes]]
    weights: list[bytes]
    state_bytes: list[tuple[bytes, ...]]


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
        hidden=[[shard.tobytes() for shard in state.hidden] for state in states],
        weights=[state.parameters.flat.tobytes() for state in states],
        state_bytes=[bytes_of(state) for state in states],
    )


def _pieces_of(
    state: TrainingState, streams: Streams, kernel: Kernel
) -> dict[tuple[int, int], Piece]:
    kernel.load(state.parameters.flat)
    pieces = {}
    for shard, hidden in enumerate(state.hidden):
        batch = streams.batch_at(shard, state.step)
        loss, gradient, after = compute_shard(kernel, batch, hidden)
        pieces[shard, state.step] = Piece(loss, gradient.flat.tobytes(), after.tobytes())
    return pieces


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
        _computed[key] = Piece(loss, gradient.flat.tobytes(), after.tobytes())
    return _computed[key]
