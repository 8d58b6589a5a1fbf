"""Sum, mean, clip and Adagrad in one pass, block by block, so that each block stays in the cache.

Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", JMLR 12 (2011), in the form and the order of operations of min-char-rnn. A test
compares its bits with those of the same operations on whole arrays. Where there are very many
weights, two threads share the blocks: numpy's loops release the interpreter's lock.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-8
BLOCK_BYTES = 524_288
SHARED_FROM = 2**20  # weights: starting a thread takes as long as a twentieth of their update


class NotFiniteError(ArithmeticError):
    """A mean gradient with an infinity or NaN."""


def update(
    weights: NDArray[Any],
    memory: NDArray[Any],
    gradient_halves: tuple[NDArray[Any], ...],
    *,
    total_streams: int,
    clip: float,
    learning_rate: float,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (weights, memory) after one step, as new arrays; all shapes (P,), one dtype.

    `gradient_halves` are one or two arrays: their sum is that over all `total_streams` = S * B.
    Raises NotFiniteError where the mean is not finite: the clip would turn an infinity into 5.
    """
    new = np.empty_like(weights), np.empty_like(memory)
    size = BLOCK_BYTES // weights.itemsize
    blocks = [slice(start, start + size) for start in range(0, len(weights), size)]
    arguments = (weights, memory), new, gradient_halves, (total_streams, clip, learning_rate)
    if len(weights) < SHARED_FROM:
        _update_blocks(blocks, *arguments)
    else:
        with ThreadPoolExecutor(1) as executor:
            odd_blocks = executor.submit(_update_blocks, blocks[1::2], *arguments)
            _update_blocks(blocks[::2], *arguments)
            odd_blocks.result()
    return new


@np.errstate(over="ignore", invalid="ignore")  # the next step's gradient is not finite then
def _update_blocks(
    blocks: list[slice],
    old: tuple[NDArray[Any], NDArray[Any]],
    new: tuple[NDArray[Any], NDArray[Any]],
    gradient_halves: tuple[NDArray[Any], ...],
    constants: tuple[int, float, float],
) -> None:
    """Write these blocks of the new weights and the new memory."""
    (weights, memory), (new_weights, new_memory) = old, new
    total_streams, clip, learning_rate = constants
    two = np.empty((2, min(BLOCK_BYTES // weights.itemsize, len(weights))), weights.dtype)
    for block in blocks:
        m, w = new_memory[block], new_weights[block]
        g, root = two[:, : len(m)]
        total, *second = [half[block] for half in gradient_halves]
        if second:
            total = np.add(total, second[0], g)
        np.divide(total, total_streams, g)
        squares = np.dot(g, g)
        if not (math.isfinite(squares) or np.isfinite(g).all()):
            raise NotFiniteError("the mean gradient is not finite")
        if not squares < clip * clip / 2:  # else none of them is near the clip
            g.clip(-clip, clip, out=g)
        np.multiply(g, g, root)
        np.add(memory[block], root, m)
        np.add(m, EPSILON, root)
        np.sqrt(root, root)
        np.multiply(g, learning_rate, g)
        np.divide(g, root, g)
        np.subtract(weights[block], g, w)


@np.errstate(over="ignore", invalid="ignore")
def all_finite(array: NDArray[Any]) -> bool:
    """Whether all values of a vector are finite; fast where the sum of their squares is."""
    return math.isfinite(np.dot(array, array)) or bool(np.isfinite(array).all())
