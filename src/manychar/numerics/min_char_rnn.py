"""The plain form of min-char-rnn's arithmetic: one stream, one-hot vectors, a loop over time.

Slow and obvious, in float64. `manychar equivalence --shards 1 --streams 1` compares the fast form
with it; tests/numerics/reference.py is another plain form, written independently.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float64]]


def loss_and_gradient(
    weights: Arrays, ids: NDArray[Any], hidden: NDArray[np.float64]
) -> tuple[float, Arrays, NDArray[np.float64]]:
    """Return (loss, gradient, last hidden state) of T + 1 ids; `hidden` has shape (H,)."""
    V = len(weights["by"])
    xs = np.eye(V)[ids[:-1]]
    hs, ps, loss = [hidden], [], 0.0
    for x, target in zip(xs, ids[1:], strict=True):
        a = weights["Wxh"] @ x + weights["Whh"] @ hs[-1] + weights["bh"]
        hs.append(np.tanh(a))
        y = weights["Why"] @ hs[-1] + weights["by"]
        p = np.exp(y - y.max())
        ps.append(p / p.sum())
        loss -= float(np.log(ps[-1][target]))
    return loss, _backward(weights, xs, hs, ps, ids[1:]), hs[-1]


def _backward(
    weights: Arrays,
    xs: NDArray[np.float64],
    hs: list[NDArray[np.float64]],
    ps: list[NDArray[np.float64]],
    targets: NDArray[Any],
) -> Arrays:
    gradient = {name: np.zeros_like(array) for name, array in weights.items()}
    from_later = np.zeros_like(hs[0])
    for t in reversed(range(len(xs))):
        dy = ps[t].copy()
        dy[targets[t]] -= 1
        gradient["Why"] += np.outer(dy, hs[t + 1])
        gradient["by"] += dy
        da = (1 - hs[t + 1] ** 2) * (weights["Why"].T @ dy + from_later)
        gradient["Wxh"] += np.outer(da, xs[t])
        gradient["Whh"] += np.outer(da, hs[t])
        gradient["bh"] += da
        from_later = weights["Whh"].T @ da
    return gradient


def adagrad(
    weights: Arrays, memory: Arrays, gradient: Arrays, *, clip: float, learning_rate: float
) -> None:
    """Clip, and update weights and memory in place."""
    for name, g in gradient.items():
        np.clip(g, -clip, clip, out=g)
        memory[name] += g * g
        weights[name] -= learning_rate * g / np.sqrt(memory[name] + 1e-8)
