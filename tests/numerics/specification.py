"""The plain forms whose bits the kernel and clipped_adagrad must give: one whole array after the
other, a new one for each result.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.model import Parameters
from manychar.numerics.tree_reduction import TreeSum

Summand = TypeVar("Summand", float, NDArray[Any])


def tree_sum(values: Sequence[Summand]) -> Summand:
    """Return the sum of at least one value in the tree's order."""
    tree = TreeSum[Summand](len(values))
    for index, value in enumerate(values):
        tree.put((index, index), value)
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


def loss_and_gradient(
    parameters: Parameters, inputs: NDArray[Any], targets: NDArray[Any], hidden: NDArray[Any]
) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """Return (loss, flat gradient, next hidden state): the kernel's operations, without buffers.

    Each matrix product has the operands, shapes and memory layouts of version 0.1.0, so that BLAS
    returns the bits of that version on any machine.
    """
    (B, T), V, H = inputs.shape, parameters.vocabulary_size, parameters.hidden_size
    w, n, columns = parameters.named(), T * B, np.arange(T * B)
    x, target = inputs.T.reshape(n), targets.T.reshape(n)
    ones = np.ones(n, hidden.dtype)
    rows, WhhT = (w["Wxh"].T + w["bh"])[x].reshape(T, B, H), np.ascontiguousarray(w["Whh"].T)
    states = [hidden]
    for row in rows:
        states.append(np.tanh(states[-1].dot(WhhT) + row))
    before, h = np.concatenate(states[:-1]), np.concatenate(states[1:])  # (n, H)

    y = w["Why"].dot(h.T) + w["by"][:, None]  # (V, n)
    y -= y.max(axis=0)
    dy = np.exp(y)
    total = np.ones(V, hidden.dtype).dot(dy)
    dy /= total
    dy[target, columns] -= 1
    loss = float((np.log(total) - y[target, columns]).sum(dtype=np.float64))

    dh, slope = (array.reshape(T, B, H) for array in (dy.T.dot(w["Why"]), 1 - h * h))
    da, from_later = np.empty_like(dh), np.zeros_like(hidden)
    for t in reversed(range(T)):
        da[t] = (dh[t] + from_later) * slope[t]
        from_later = da[t].dot(w["Whh"])
    da = da.reshape(n, H)
    dWxh, dWhh, dWhy = _sum_by_character(da, x, V).T, da.T.dot(before), dy.dot(h)
    arrays = (dWxh.reshape(-1), dWhh.reshape(-1), dWhy.reshape(-1), ones.dot(da), dy.dot(ones))
    return loss, np.concatenate(arrays), states[-1]


def _sum_by_character(da: NDArray[Any], x: NDArray[Any], V: int) -> NDArray[Any]:
    """Return (V, H): one product with ones and zeros for a few rows, else one a character."""
    if len(x) <= V:
        chosen: NDArray[Any] = (np.arange(V)[:, None] == x).astype(da.dtype).dot(da)
        return chosen
    sums = np.zeros((V, da.shape[1]), da.dtype)
    for character in np.unique(x):
        block = da[x == character]
        sums[character] = np.ones(len(block), da.dtype).dot(block)
    return sums
