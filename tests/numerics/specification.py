"""One update, one whole array after the other: clipped_adagrad is held to the same bits."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.tree_reduction import TreeSum

Summand = TypeVar("Summand", float, NDArray[Any])


def tree_sum(values: Sequence[Summand]) -> Summand:
    """Return the sum of at least one value in the tree's order."""
    tree = TreeSum[Summand](len(values))
    for index, value in enumerate(values):
        tree.add(index, value)
    return tree.result()


def mean_and_clip(total: NDArray[Any], streams: int, bound: float) -> NDArray[Any]:
    """Divide once, not by a product with the reciprocal; then limit each element."""
    clipped: NDArray[Any] = np.clip(total / streams, -bound, bound)
    return clipped


def adagrad(
    weights: NDArray[Any], memory: NDArray[Any], gradient: NDArray[Any], learning_rate: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (weights, memory) after one step, as new arrays."""
    memory = memory + gradient * gradient
    return weights - learning_rate * gradient / np.sqrt(memory + 1e-8), memory
