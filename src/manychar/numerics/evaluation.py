"""The loss of the model on a text, forward only.

The text is read in up to COLUMNS segments side by side, because one after the other would take as
many times as long. Each segment but the first starts WARM_UP characters early, from a zero hidden
state; those characters are not counted: every character but the text's first counts once.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.kernel import no_progress
from manychar.numerics.model import Parameters

COLUMNS = 32
WARM_UP = 100
SHORTEST_SEGMENT = 4 * WARM_UP
CHUNK = 2048  # characters whose losses are one matrix product


def loss_of(
    parameters: Parameters,
    ids: NDArray[np.unsignedinteger],
    progress: Callable[[], None] = no_progress,
) -> float:
    """Return the mean loss, in nats a character, of the N - 1 characters after the first.

    `ids` has shape (N,), N of at least 2. `progress` is called between the pieces of the work, at
    least once a time step.
    """
    predicted = len(ids) - 1
    columns = max(1, min(COLUMNS, predicted // SHORTEST_SEGMENT))
    length = math.ceil(predicted / columns)
    reader, nats = _Reader(parameters, columns), 0.0
    starts = np.arange(columns) * length
    if columns > 1:
        for t in range(-WARM_UP, 0):
            reader.read(ids[np.maximum(starts + t, 0)])
            progress()
        reader.h[0] = 0.0  # the first segment has nothing before it
    chunk = max(1, CHUNK // columns)
    for first in range(0, length, chunk):
        positions = starts + np.arange(first, min(first + chunk, length))[:, None]
        counts, positions = positions < predicted, np.minimum(positions, predicted - 1)
        states = []
        for characters in ids[positions]:
            states.append(reader.read(characters))
            progress()
        nats += reader.loss(np.concatenate(states), ids[positions + 1].ravel(), counts.ravel())
        progress()
    return nats / predicted


class _Reader:
    """Reads several segments of text side by side, one character of each at a time."""

    def __init__(self, parameters: Parameters, columns: int) -> None:
        arrays = parameters.named()
        self._input = np.ascontiguousarray(arrays["Wxh"].T) + arrays["bh"]  # (V, H)
        self._recurrent = np.ascontiguousarray(arrays["Whh"].T)  # (H, H)
        self._output, self._bias = np.ascontiguousarray(arrays["Why"].T), arrays["by"]  # (H, V)
        self.h = np.zeros((columns, parameters.hidden_size), parameters.flat.dtype)

    def read(self, characters: NDArray[np.unsignedinteger]) -> NDArray[Any]:
        """Return the hidden states (columns, H) after one character each."""
        h: NDArray[Any] = self.h @ self._recurrent
        h += self._input[characters]
        self.h = np.tanh(h, out=h)
        return self.h

    def loss(
        self, states: NDArray[Any], targets: NDArray[np.unsignedinteger], counted: NDArray[np.bool_]
    ) -> float:
        """Return the nats of n targets after n hidden states (n, H), of those that count."""
        y = states @ self._output + self._bias
        top = y.max(axis=1, keepdims=True)
        normalizer = np.log(np.exp(y - top).sum(axis=1)) + top[:, 0]
        nats = normalizer - y[np.arange(len(targets)), targets]
        return float(nats[counted].sum(dtype=np.float64))
