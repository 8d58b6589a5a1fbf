"""What the hidden units do over a text, character by character."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.model import Parameters


def activations(parameters: Parameters, ids: NDArray[Any]) -> NDArray[np.float64]:
    """Return the hidden state after each of the N characters, (N, H), from a zero state on.

    `ids`, shape (N,), are below V. Computed in float64 whatever the weights are in, as sampling is,
    so that these are the states from which a sample was drawn.
    """
    weights = {name: view.astype(np.float64) for name, view in parameters.named().items()}
    states = np.empty((len(ids), parameters.hidden_size))
    inputs = weights["Wxh"].T[ids] + weights["bh"]
    h = np.zeros(parameters.hidden_size)
    for before_tanh, state in zip(inputs, states, strict=True):
        h = np.tanh(before_tanh + weights["Whh"] @ h, out=state)
    return states
