"""The single-process trainer: the determinism contract as a program.

A run is a sequence of states, and each follows from the one before it by `advance`. The parameter
server computes the same states from the gradients of its workers, by the same `apply`.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics import clipped_adagrad
from manychar.numerics.corpus import Batch, Streams
from manychar.numerics.kernel import Kernel, no_progress
from manychar.numerics.model import Parameters, initialize
from manychar.numerics.run_definition import Definition
from manychar.numerics.tree_reduction import TreeSum, sum_in_tree


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingState:
    """The state between two steps. No array in it is ever written to again.

    `parameters` are those after `step` updates, `memory` is Adagrad's, shape (P,); `hidden`, shape
    (S, B, H), is each shard's raw state before step `step`. Losses are in nats, summed over T
    characters, mean over all streams.
    """

    step: int
    parameters: Parameters
    memory: NDArray[Any]
    hidden: NDArray[Any]
    smooth_loss: float


def start(
    definition: Definition, vocabulary_size: int, parameters: Parameters | None = None
) -> TrainingState:
    """Return the state before the first step, with these weights or those of the seed."""
    parameters = parameters or initialize(
        vocabulary_size, definition.hidden, dtype=definition.dtype, seed=definition.seed
    )
    shape = (definition.shards, definition.streams, definition.hidden)
    return TrainingState(
        step=0,
        parameters=parameters,
        memory=np.zeros_like(parameters.flat),
        hidden=np.zeros(shape, dtype=definition.dtype),
        smooth_loss=definition.seq_length * math.log(vocabulary_size),
    )


def kernel_of(definition: Definition, vocabulary_size: int) -> Kernel:
    """Return a kernel that computes this run's shards."""
    return Kernel(
        vocabulary_size,
        definition.hidden,
        seq_length=definition.seq_length,
        streams=definition.streams,
        dtype=definition.dtype,
    )


def compute_shard(
    kernel: Kernel, batch: Batch, hidden: NDArray[Any], progress: Callable[[], None] = no_progress
) -> tuple[float, Parameters, NDArray[Any]]:
    """Return (loss, gradient, next hidden state) of one shard at one step.

    This is the elementary computation of the contract.
    The kernel has been loaded with the weights. `hidden` is the raw stored state; where the text
    starts again, zeros are used instead. Raises IndexError for an id that is not in the vocabulary.
    """
    if batch.fresh:
        hidden = np.zeros_like(hidden)
    return kernel.compute(batch.ids[:, :-1], batch.ids[:, 1:], hidden, progress)


def apply(
    state: TrainingState,
    definition: Definition,
    *,
    gradient_halves: tuple[NDArray[Any], ...],
    loss_sum: float,
    hidden: NDArray[Any],
) -> TrainingState:
    """Return the state after one step, from the sums over all shards and the next hidden states.

    `gradient_halves` are those of a TreeSum: their sum is the gradient's. Raises NotFiniteError.
    """
    flat, memory = clipped_adagrad.update(
        state.parameters.flat,
        state.memory,
        gradient_halves,
        total_streams=definition.total_streams,
        clip=definition.clip,
        learning_rate=definition.learning_rate_at(state.step),
    )
    loss = loss_sum / definition.total_streams
    return TrainingState(
        step=state.step + 1,
        parameters=state.parameters.like(flat),
        memory=memory,
        hidden=hidden,
        smooth_loss=0.999 * state.smooth_loss + 0.001 * loss,
    )


def advance(
    state: TrainingState, definition: Definition, corpus: Streams, kernel: Kernel
) -> TrainingState:
    """Return the next state, every shard's gradient computed here, one after the other."""
    kernel.load(state.parameters.flat)
    gradient_sum = TreeSum[NDArray[Any]](definition.shards)
    losses = []
    hidden = np.empty_like(state.hidden)
    for shard in range(definition.shards):
        batch = corpus.batch_at(shard, state.step)
        loss, gradient, hidden[shard] = compute_shard(kernel, batch, state.hidden[shard])
        gradient_sum.put((shard, shard), gradient.flat)
        losses.append(loss)
    return apply(
        state,
        definition,
        gradient_halves=gradient_sum.halves(),
        loss_sum=sum_in_tree(losses),
        hidden=hidden,
    )


def weights_sha256(parameters: Parameters) -> str:
    """Return the SHA-256 of the five parameters' little-endian bytes."""
    little = parameters.flat.astype(parameters.flat.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()
