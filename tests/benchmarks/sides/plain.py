"""Plain min-char-rnn, in the form that everyone knows: column vectors, one-hot inputs, float64.

A loop over time forward and one back, a list of states, np.dot, and Adagrad in place for each
parameter. One stream. Nothing in it is slower than in the form that it follows.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.model import Parameters
from tests.benchmarks.pace import per_second
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task

Array = NDArray[np.float64]


class Plain:
    """A model, its memory, and its place in the text."""

    def __init__(self, data: list[int], V: int, H: int, seq_length: int, seed: int = 0) -> None:
        draw = np.random.default_rng(seed).standard_normal
        self.data, self.V, self.T = data, V, seq_length
        self.Wxh: Array = draw((H, V)) * 0.01
        self.Whh: Array = draw((H, H)) * 0.01
        self.Why: Array = draw((V, H)) * 0.01
        self.bh, self.by = np.zeros((H, 1)), np.zeros((V, 1))
        self.parameters = [self.Wxh, self.Whh, self.Why, self.bh, self.by]
        self.memories = [np.zeros_like(parameter) for parameter in self.parameters]
        self.h, self.p = np.zeros((H, 1)), 0

    def step(self) -> None:
        """Read the next characters, and learn from them."""
        if self.p + self.T + 1 >= len(self.data):
            self.h, self.p = np.zeros_like(self.h), 0
        inputs = self.data[self.p : self.p + self.T]
        targets = self.data[self.p + 1 : self.p + self.T + 1]
        _, gradients, self.h = self.loss(inputs, targets, self.h)
        for parameter, gradient, memory in zip(
            self.parameters, gradients, self.memories, strict=True
        ):
            memory += gradient * gradient  # noqa: PLW2901 - in place
            parameter += -0.1 * gradient / np.sqrt(memory + 1e-8)  # noqa: PLW2901
        self.p += self.T

    def loss(
        self, inputs: list[int], targets: list[int], before: Array
    ) -> tuple[float, list[Array], Array]:
        """Return (loss, clipped gradients, last hidden state) of one piece of text."""
        xs: dict[int, Array] = {}
        hs: dict[int, Array] = {-1: before}
        ps: dict[int, Array] = {}
        loss = 0.0
        for t in range(len(inputs)):
            xs[t] = np.zeros((self.V, 1))
            xs[t][inputs[t]] = 1
            hs[t] = np.tanh(np.dot(self.Wxh, xs[t]) + np.dot(self.Whh, hs[t - 1]) + self.bh)
            ys = np.dot(self.Why, hs[t]) + self.by
            ps[t] = np.exp(ys) / np.sum(np.exp(ys))
            loss += -np.log(ps[t][targets[t], 0])
        return loss, self.gradients(targets, xs, hs, ps), hs[len(inputs) - 1]

    def gradients(
        self, targets: list[int], xs: dict[int, Array], hs: dict[int, Array], ps: dict[int, Array]
    ) -> list[Array]:
        """Go back through time."""
        gradients = [np.zeros_like(parameter) for parameter in self.parameters]
        dWxh, dWhh, dWhy, dbh, dby = gradients
        from_later = np.zeros_like(self.h)
        for t in reversed(range(len(targets))):
            dy = np.copy(ps[t])
            dy[targets[t]] -= 1
            dWhy += np.dot(dy, hs[t].T)
            dby += dy
            dh = np.dot(self.Why.T, dy) + from_later
            da = (1 - hs[t] * hs[t]) * dh
            dbh += da
            dWxh += np.dot(da, xs[t].T)
            dWhh += np.dot(da, hs[t - 1].T)
            from_later = np.dot(self.Whh.T, da)
        for gradient in gradients:
            np.clip(gradient, -5, 5, out=gradient)
        return gradients

    def weights(self) -> Parameters:
        """Return the five parameters as this program has them."""
        flat = np.concatenate([parameter.ravel() for parameter in self.parameters])
        return Parameters(flat, self.V, len(self.h))


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Train on; the figure is characters a second."""
    V, ids = read_ids(task.text)
    model = Plain(ids.tolist(), V, task.hidden, task.seq_length)

    def go(_: str) -> float:
        return task.seq_length * per_second(model.step, task.seconds)

    per_second(model.step, min(task.seconds, 0.5))
    return "", go
