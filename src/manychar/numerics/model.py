"""The tanh RNN of min-char-rnn: its weights, how they begin, and sampling from them.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)        y[t] = Why h[t] + by        p[t] = softmax(y[t])

Letters of the shapes: V characters in the vocabulary, H hidden units. `kernel` has the gradient.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

INITIAL_SCALE = 0.01
DRAWN_AT_ONCE = 2**20


def count_parameters(vocabulary_size: int, hidden_size: int) -> int:
    """P, the number of elements of Wxh, Whh, Why, bh and by together."""
    return hidden_size * (2 * vocabulary_size + hidden_size + 1) + vocabulary_size


def shapes_of(vocabulary_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the five arrays by name, in their order."""
    V, H = vocabulary_size, hidden_size
    return {"Wxh": (H, V), "Whh": (H, H), "Why": (V, H), "bh": (H,), "by": (V,)}


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
    """The five arrays of the model as views of one contiguous vector `flat`, shape (P,).

    Their order in it is Wxh (H, V), Whh (H, H), Why (V, H), bh (H,), by (V,). A gradient, and
    Adagrad's memory, have the same type. Raises ValueError if `flat` has another length.
    """

    flat: NDArray[Any]
    vocabulary_size: int
    hidden_size: int

    def __post_init__(self) -> None:
        size = count_parameters(self.vocabulary_size, self.hidden_size)
        if self.flat.shape != (size,):
            raise ValueError(f"parameters have shape {self.flat.shape}, expected ({size},)")

    def named(self) -> dict[str, NDArray[Any]]:
        """Return the five views by name, in their order."""
        views, start = {}, 0
        for name, shape in shapes_of(self.vocabulary_size, self.hidden_size).items():
            end = start + math.prod(shape)
            views[name] = self.flat[start:end].reshape(shape)
            start = end
        return views

    def like(self, flat: NDArray[Any]) -> "Parameters":
        return Parameters(flat, self.vocabulary_size, self.hidden_size)


Model = tuple[Parameters, str]  # with the vocabulary


def initialize(
    vocabulary_size: int, hidden_size: int, *, dtype: str = "float32", seed: int = 0
) -> Parameters:
    """Return the weights before the first step: 0.01 * standard normal, biases zero.

    They are drawn in float64 from a generator of their own and rounded to `dtype`.
    """
    size = count_parameters(vocabulary_size, hidden_size)
    drawn = size - hidden_size - vocabulary_size
    generator = np.random.default_rng([seed, 0])
    flat = np.zeros(size, dtype=dtype)
    for start in range(0, drawn, DRAWN_AT_ONCE):  # between them a signal is handled
        part = flat[start : min(start + DRAWN_AT_ONCE, drawn)]
        part[:] = INITIAL_SCALE * generator.standard_normal(len(part))
    return Parameters(flat, vocabulary_size, hidden_size)


def sample(
    parameters: Parameters,
    generator: np.random.Generator,
    *,
    prime: NDArray[Any],
    temperature: float = 1.0,
    top_k: int = 0,
) -> Iterator[int]:
    """Yield ids without end, each drawn from the model's distribution after those before it.

    `prime`, at least one id, is read from a zero hidden state and not yielded. Temperature 0
    takes the likeliest character; `top_k` above 0 draws among the k likeliest only.
    """
    weights = {name: view.astype(np.float64) for name, view in parameters.named().items()}
    h = np.zeros(parameters.hidden_size)
    for character in prime:
        h = _next_state(weights, h, int(character))
    while True:
        y = weights["Why"] @ h + weights["by"]
        drawn = _draw(y, generator, temperature, top_k)
        yield drawn
        h = _next_state(weights, h, drawn)


def activations(parameters: Parameters, ids: NDArray[Any]) -> NDArray[np.float64]:
    """Return the hidden state after each of the N characters, (N, H), from a zero state on.

    `ids`, shape (N,), are below V. These are the states from which a sample was drawn.
    """
    weights = {name: view.astype(np.float64) for name, view in parameters.named().items()}
    states, h = np.empty((len(ids), parameters.hidden_size)), np.zeros(parameters.hidden_size)
    for t, character in enumerate(ids):
        states[t] = h = _next_state(weights, h, int(character))
    return states


def _next_state(
    weights: dict[str, NDArray[Any]], h: NDArray[np.float64], character: int
) -> NDArray[np.float64]:
    a: NDArray[np.float64] = weights["Wxh"][:, character] + weights["Whh"] @ h + weights["bh"]
    return np.tanh(a)


def _draw(y: NDArray[Any], generator: np.random.Generator, temperature: float, top_k: int) -> int:
    if temperature == 0:
        return int(np.argmax(y))
    if 0 < top_k < len(y):
        kept = np.argsort(-y, kind="stable")[:top_k]
        return int(kept[_draw(y[kept], generator, temperature, 0)])
    with np.errstate(over="ignore"):  # the unlikely ones of a tiny temperature are -inf, and 0
        p = np.exp((y - y.max()) / temperature)
    cumulative = np.cumsum(p)
    drawn = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
    return min(int(drawn), len(y) - 1)
