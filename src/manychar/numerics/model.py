"""The tanh RNN of min-char-rnn, batched over streams: weights, loss and gradient, sampling.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)        y[t] = Why h[t] + by        p[t] = softmax(y[t])

Letters of the shapes: V characters in the vocabulary, H hidden units, T characters a step, B
streams. Inside, time comes first, (T, B, ...), so that the work of all time steps that do not wait
for one another is one matrix product over T*B rows. The tests hold it to a plain form of the same
arithmetic: one-hot vectors and a loop over time.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

INITIAL_SCALE = 0.01


def count_parameters(vocabulary_size: int, hidden_size: int) -> int:
    """P, the number of elements of Wxh, Whh, Why, bh and by together."""
    return hidden_size * (2 * vocabulary_size + hidden_size + 1) + vocabulary_size


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
        """Check the length once; the views below rely on it."""
        size = count_parameters(self.vocabulary_size, self.hidden_size)
        if self.flat.shape != (size,):
            raise ValueError(f"parameters have shape {self.flat.shape}, expected ({size},)")

    @property
    def Wxh(self) -> NDArray[Any]:  # noqa: N802
        """Character to hidden, (H, V)."""
        return self.named()["Wxh"]

    @property
    def Whh(self) -> NDArray[Any]:  # noqa: N802
        """Hidden to hidden, (H, H)."""
        return self.named()["Whh"]

    @property
    def Why(self) -> NDArray[Any]:  # noqa: N802
        """Hidden to character, (V, H)."""
        return self.named()["Why"]

    @property
    def bh(self) -> NDArray[Any]:
        """Bias of the hidden units, (H,)."""
        return self.named()["bh"]

    @property
    def by(self) -> NDArray[Any]:
        """Bias of the characters, (V,)."""
        return self.named()["by"]

    def named(self) -> dict[str, NDArray[Any]]:
        """Return the five views by name, in their order."""
        V, H = self.vocabulary_size, self.hidden_size
        shapes = {"Wxh": (H, V), "Whh": (H, H), "Why": (V, H), "bh": (H,), "by": (V,)}
        views, start = {}, 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            views[name] = self.flat[start:end].reshape(shape)
            start = end
        return views

    def like(self, flat: NDArray[Any]) -> "Parameters":
        """Return another vector with this one's shapes."""
        return Parameters(flat, self.vocabulary_size, self.hidden_size)


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
    flat[:drawn] = INITIAL_SCALE * generator.standard_normal(drawn)
    return Parameters(flat, vocabulary_size, hidden_size)


def nothing() -> None:
    """Stand for progress that nobody watches."""


def loss_and_gradient(
    parameters: Parameters,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    hidden: NDArray[Any],
    progress: Callable[[], None] = nothing,
) -> tuple[float, Parameters, NDArray[Any]]:
    """Return (loss, gradient, next hidden state) of T characters of B streams.

    `inputs` and `targets` are ids below V, shape (B, T); `hidden`, shape (B, H), is the state
    before the first character, in the dtype of the parameters (float32 or float64), and the
    returned one that after the last. Loss (nats) and gradient are sums over time and streams; the
    gradient is not clipped. `progress` is called between the pieces of the work, at least once a
    time step.
    Raises ValueError where shapes or dtypes disagree, IndexError for an id not in 0 … V-1.
    """
    B, T = inputs.shape
    if targets.shape != (B, T) or hidden.shape != (B, parameters.hidden_size):
        raise ValueError(f"targets {targets.shape}, hidden {hidden.shape} for inputs {(B, T)}")
    if hidden.dtype != parameters.flat.dtype:
        raise ValueError(f"a hidden state in {hidden.dtype} for {parameters.flat.dtype}")
    if min(inputs.min(), targets.min()) < 0:
        raise IndexError("an id below 0")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite shows in the result
        return _loss_and_gradient(parameters, inputs, targets, hidden, progress)


def _loss_and_gradient(
    parameters: Parameters,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    hidden: NDArray[Any],
    progress: Callable[[], None],
) -> tuple[float, Parameters, NDArray[Any]]:
    B, T = inputs.shape
    weights = parameters.named()
    characters = inputs.T.ravel()  # (T*B,), time first
    states = _hidden_states(weights, characters, hidden, progress)  # (T+1, B, H)
    h = states[1:].reshape(T * B, -1)  # (T*B, H)
    loss, dy = _softmax_loss(h @ weights["Why"].T + weights["by"], targets.T.ravel())  # (T*B, V)
    progress()
    da = _through_time(weights, states, (dy @ weights["Why"]).reshape(T, B, -1), progress)

    gradient = parameters.like(np.empty_like(parameters.flat))
    d = gradient.named()
    d["Wxh"][:] = _sum_by_character(da, characters, parameters.vocabulary_size).T
    d["Whh"][:] = da.T @ states[:-1].reshape(T * B, -1)
    d["Why"][:] = dy.T @ h
    d["bh"][:] = da.sum(axis=0)
    d["by"][:] = dy.sum(axis=0)
    progress()
    return loss, gradient, states[-1].copy()


def _hidden_states(
    weights: dict[str, NDArray[Any]],
    characters: NDArray[Any],
    hidden: NDArray[Any],
    progress: Callable[[], None],
) -> NDArray[Any]:
    """h[-1] … h[T-1], shape (T+1, B, H). The product with a one-hot x is a choice of a row."""
    B, H = hidden.shape
    inputs = (weights["Wxh"].T.copy()[characters] + weights["bh"]).reshape(-1, B, H)
    WhhT = weights["Whh"].T.copy()
    states = np.empty((len(inputs) + 1, B, H), dtype=hidden.dtype)
    states[0] = hidden
    for t, x in enumerate(inputs):
        np.tanh(states[t] @ WhhT + x, out=states[t + 1])
        progress()
    return states


def _softmax_loss(y: NDArray[Any], targets: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """Cross-entropy of softmax(y) (n, V) against targets (n,), and its gradient p - 1[target].

    The row's maximum is taken off first, so that no exponential overflows.
    """
    rows = np.arange(len(targets))
    y = y - y.max(axis=1, keepdims=True)
    at_target = y[rows, targets]
    p = np.exp(y)
    total = p.sum(axis=1, keepdims=True)
    loss = float(np.sum(np.log(total[:, 0]) - at_target, dtype=np.float64))
    p /= total
    p[rows, targets] -= 1
    return loss, p


def _through_time(
    weights: dict[str, NDArray[Any]],
    states: NDArray[Any],
    dh: NDArray[Any],
    progress: Callable[[], None],
) -> NDArray[Any]:
    """Gradient before the tanh, shape (T*B, H), from dh (T, B, H), what the outputs ask of h."""
    T, B, H = dh.shape
    slope = 1 - states[1:] * states[1:]  # tanh' at every time step
    da = np.empty_like(dh)
    from_later = np.zeros((B, H), dtype=dh.dtype)
    for t in reversed(range(T)):
        da[t] = slope[t] * (dh[t] + from_later)
        from_later = da[t] @ weights["Whh"]
        progress()
    return da.reshape(T * B, H)


def _sum_by_character(
    rows: NDArray[Any], characters: NDArray[Any], vocabulary_size: int
) -> NDArray[Any]:
    """Sum the rows (n, H) of each character: (V, H). In order of time, then stream.

    Sorted by character, the rows of each are one block, and BLAS adds up a block in one call.
    """
    order = np.argsort(characters, kind="stable")
    rows = rows[order]
    ends = np.cumsum(np.bincount(characters, minlength=vocabulary_size))
    ones = np.ones(len(rows), dtype=rows.dtype)
    sums = np.zeros((vocabulary_size, rows.shape[1]), dtype=rows.dtype)
    for character in np.unique(characters):
        start = ends[character - 1] if character else 0
        block = rows[start : ends[character]]
        np.dot(ones[: len(block)], block, out=sums[character])
    return sums


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
    Raises ValueError for an empty prime, a negative temperature or a negative k.
    """
    if len(prime) == 0 or not temperature >= 0 or top_k < 0:
        raise ValueError(
            "sampling needs a prime, a temperature of at least 0 and a k of at least 0"
        )
    weights = {name: view.astype(np.float64) for name, view in parameters.named().items()}
    h = np.zeros(parameters.hidden_size)
    for character in prime[:-1]:
        h = _next_state(weights, h, int(character))
    character = int(prime[-1])
    while True:
        h = _next_state(weights, h, character)
        y = weights["Why"] @ h + weights["by"]
        character = _draw(y, generator, temperature=temperature, top_k=top_k)
        yield character


def _next_state(
    weights: dict[str, NDArray[Any]], h: NDArray[np.float64], character: int
) -> NDArray[np.float64]:
    a: NDArray[np.float64] = weights["Wxh"][:, character] + weights["Whh"] @ h + weights["bh"]
    return np.tanh(a)


def _draw(
    y: NDArray[Any], generator: np.random.Generator, *, temperature: float, top_k: int
) -> int:
    if temperature == 0:
        return int(np.argmax(y))
    if 0 < top_k < len(y):
        kept = np.argsort(-y, kind="stable")[:top_k]
        return int(kept[_draw(y[kept], generator, temperature=temperature, top_k=0)])
    with np.errstate(over="ignore"):  # the unlikely ones of a tiny temperature are -inf, and 0
        p = np.exp((y - y.max()) / temperature)
    cumulative = np.cumsum(p)
    drawn = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
    return min(int(drawn), len(y) - 1)
