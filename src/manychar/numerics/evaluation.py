"""How well the model predicts a text: its loss, forward only.

The text is read in up to LANES pieces side by side, because one after the other would take as many
times as long. Each piece but the first begins WARM_UP characters early, with a hidden state that is
zero there, and those are not counted: every character but the text's first counts once.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.loss_units import bits_of
from manychar.numerics.model import Parameters

LANES = 32
WARM_UP = 100
SHORTEST_PIECE = 4 * WARM_UP
CHARACTERS_AT_ONCE = 2048


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A text's loss: `nats` in all, over the `characters` that were predicted."""

    nats: float
    characters: int

    @property
    def nats_a_character(self) -> float:
        """The mean in nats."""
        return self.nats / self.characters

    @property
    def bits_a_character(self) -> float:
        """The mean in bits."""
        return bits_of(self.nats_a_character)


def evaluate(parameters: Parameters, ids: NDArray[np.unsignedinteger]) -> Evaluation:
    """Return the loss of a text, ids of shape (N,). Raises ValueError below two characters."""
    predicted = len(ids) - 1
    if predicted < 1:
        raise ValueError("a text of less than two characters predicts nothing")
    lanes = max(1, min(LANES, predicted // SHORTEST_PIECE))
    length = math.ceil(predicted / lanes)
    model, nats = _Reader(parameters, lanes), 0.0
    begins = np.arange(lanes) * length
    if lanes > 1:
        for t in range(-WARM_UP, 0):
            places = begins + t
            model.read(ids[np.maximum(places, 0)], fresh=places < 0)
    at_once = max(1, CHARACTERS_AT_ONCE // lanes)
    for first in range(0, length, at_once):
        states, targets, counted = [], [], []
        for t in range(first, min(first + at_once, length)):
            places = begins + t
            counted.append(places < predicted)
            places = np.minimum(places, predicted - 1)
            states.append(model.read(ids[places]))
            targets.append(ids[places + 1])
        nats += model.loss(np.concatenate(states), np.concatenate(targets), np.concatenate(counted))
    return Evaluation(nats, predicted)


class _Reader:
    """Reads several pieces of text side by side, one character of each at a time."""

    def __init__(self, parameters: Parameters, lanes: int) -> None:
        arrays = parameters.named()
        self._input = np.ascontiguousarray(arrays["Wxh"].T) + arrays["bh"]  # (V, H)
        self._recurrent = np.ascontiguousarray(arrays["Whh"].T)  # (H, H)
        self._output, self._bias = np.ascontiguousarray(arrays["Why"].T), arrays["by"]  # (H, V)
        self._h = np.zeros((lanes, parameters.hidden_size), parameters.flat.dtype)

    def read(
        self, characters: NDArray[np.unsignedinteger], *, fresh: NDArray[np.bool_] | None = None
    ) -> NDArray[Any]:
        """Return the hidden states (lanes, H) after one character each; where `fresh`, zero."""
        h: NDArray[Any] = self._h @ self._recurrent
        h += self._input[characters]
        self._h = np.tanh(h, out=h)
        if fresh is not None:
            h[fresh] = 0.0
        return h

    def loss(
        self, states: NDArray[Any], targets: NDArray[np.unsignedinteger], counted: NDArray[np.bool_]
    ) -> float:
        """Return the nats of n targets after n hidden states (n, H), of those that count."""
        y = states @ self._output + self._bias
        top = y.max(axis=1, keepdims=True)
        normalizer = np.log(np.exp(y - top).sum(axis=1)) + top[:, 0]
        nats = normalizer - y[np.arange(len(targets)), targets]
        return float(nats[counted].sum(dtype=np.float64))
