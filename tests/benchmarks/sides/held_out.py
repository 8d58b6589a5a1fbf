"""The loss on a text that was held out: read once from a zero hidden state, nats a character."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def nats_per_character(weights: Mapping[str, NDArray[Any]], ids: NDArray[Any]) -> float:
    """Return the mean loss of each character of `ids` but the first, from those before it."""
    rows = weights["Wxh"].T + weights["bh"]
    Whh, h = np.ascontiguousarray(weights["Whh"]), np.zeros_like(weights["bh"])
    states = np.empty((len(ids) - 1, len(h)), h.dtype)
    for t, character in enumerate(ids[:-1].tolist()):
        h = np.tanh(rows[character] + Whh.dot(h))
        states[t] = h
    y = states @ weights["Why"].T + weights["by"]
    y -= y.max(axis=1, keepdims=True)
    of_target = y[np.arange(len(y)), ids[1:]]
    return float(np.mean(np.log(np.exp(y).sum(axis=1)) - of_target, dtype=np.float64))


def crossing(before: tuple[float, float], after: tuple[float, float], target: float) -> float:
    """Return when a loss comes down to the target, between two of (time, loss)."""
    (t0, high), (t1, low) = before, after
    return t1 if high <= low else t0 + (t1 - t0) * (high - target) / (high - low)
