"""A plain min-char-rnn, the oracle: float64, one stream, one-hot vectors, a loop over time.

Written to be seen to be right, not to be fast.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]

NAMES = ("Wxh", "Whh", "Why", "bh", "by")


def double(named: Mapping[str, NDArray[Any]]) -> Weights:
    """Copy the five arrays, in float64."""
    return {name: np.array(named[name], dtype=np.float64) for name in NAMES}


def one_hot(character: int, vocabulary_size: int) -> Array:
    x = np.zeros(vocabulary_size)
    x[character] = 1.0
    return x


def next_hidden(weights: Weights, x: Array, h: Array) -> Array:
    a: Array = weights["Wxh"] @ x + weights["Whh"] @ h + weights["bh"]
    return np.tanh(a)


def scores_after(weights: Weights, read: Sequence[int]) -> Array:
    """The scores y of the next character, after `read` from a zero hidden state."""
    h = np.zeros(len(weights["bh"]))
    for character in read:
        h = next_hidden(weights, one_hot(character, len(weights["by"])), h)
    y: Array = weights["Why"] @ h + weights["by"]
    return y


def softmax(y: Array) -> Array:
    p: Array = np.exp(y) / np.sum(np.exp(y))
    return p


def loss_fun(
    weights: Weights, inputs: Sequence[int], targets: Sequence[int], hidden: Array
) -> tuple[float, Weights, Array]:
    """Return (loss, gradient, next hidden state) of one stream; the gradient is not clipped."""
    V, T = len(weights["by"]), len(inputs)
    x = [one_hot(character, V) for character in inputs]
    h = {-1: hidden}
    p = []
    loss = 0.0
    for t in range(T):
        h[t] = next_hidden(weights, x[t], h[t - 1])
        p.append(softmax(weights["Why"] @ h[t] + weights["by"]))
        loss -= math.log(p[t][targets[t]])

    d = {name: np.zeros_like(weights[name]) for name in NAMES}
    dh_from_later = np.zeros_like(hidden)
    for t in range(T - 1, -1, -1):
        dy = p[t] - one_hot(targets[t], V)
        dh = weights["Why"].T @ dy + dh_from_later
        da = (1.0 - h[t] ** 2) * dh
        d["by"] += dy
        d["Why"] += np.outer(dy, h[t])
        d["bh"] += da
        d["Wxh"] += np.outer(da, x[t])
        d["Whh"] += np.outer(da, h[t - 1])
        dh_from_later = weights["Whh"].T @ da
    return loss, d, h[T - 1]


def positions(length: int, seq_length: int) -> Iterator[tuple[int, bool]]:
    """Yield (p, whether the hidden state is zeroed) step by step, without end."""
    p, first = 0, True
    while True:
        fresh = first or p + seq_length + 1 >= length
        if fresh:
            p = 0
        yield p, fresh
        p, first = p + seq_length, False


def adagrad(
    weights: Weights, memory: Weights, gradient: Weights, *, learning_rate: float, clip: float
) -> None:
    """Clip, then step: writes to `weights` and `memory`."""
    for name in NAMES:
        param, mem = weights[name], memory[name]
        d = np.clip(gradient[name], -clip, clip)
        mem += d * d
        param += -learning_rate * d / np.sqrt(mem + 1e-8)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What the trainer holds after an update."""

    weights: Weights
    memory: Weights
    hidden: Array
    smooth_loss: float


def train(
    weights: Weights,
    data: Sequence[int],
    *,
    seq_length: int,
    learning_rate: float = 0.1,
    clip: float = 5.0,
) -> Iterator[Snapshot]:
    """Train a copy of `weights` on one stream without end; yield after every update."""
    weights = double(weights)
    memory = {name: np.zeros_like(weights[name]) for name in NAMES}
    hidden = np.zeros(len(weights["bh"]))
    smooth_loss = -math.log(1.0 / len(weights["by"])) * seq_length
    for p, fresh in positions(len(data), seq_length):
        if fresh:
            hidden = np.zeros_like(hidden)
        inputs = data[p : p + seq_length]
        targets = data[p + 1 : p + seq_length + 1]
        loss, gradient, hidden = loss_fun(weights, inputs, targets, hidden)
        smooth_loss = smooth_loss * 0.999 + loss * 0.001
        adagrad(weights, memory, gradient, learning_rate=learning_rate, clip=clip)
        yield Snapshot(double(weights), double(memory), hidden, smooth_loss)
