"""Adagrad as a pure pair: the memory is passed in and returned.

Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", JMLR 12 (2011), in the form and the order of operations of min-char-rnn.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-8


def init(weights: NDArray[Any]) -> NDArray[Any]:
    """Return the memory before the first step: zeros of the weights' shape and dtype."""
    return np.zeros_like(weights)


def update(
    weights: NDArray[Any], memory: NDArray[Any], gradient: NDArray[Any], learning_rate: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (weights, memory) after one step, as new arrays; all shapes (P,), one dtype."""
    memory = memory + gradient * gradient
    return weights - learning_rate * gradient / np.sqrt(memory + EPSILON), memory
