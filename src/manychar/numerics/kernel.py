"""The gradient of one shard at one step, in buffers that are allocated once.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)        y[t] = Why h[t] + by        p[t] = softmax(y[t])

Letters of the shapes: V characters in the vocabulary, H hidden units, T characters a step, B
streams, n = T*B. Time comes first, (T, B, ...): what does not depend on the time step before is one
matrix product over n rows, and only two products a time step remain, one forward and one back. The
outputs are transposed, (V, n): a softmax then runs along memory. The tests compare the kernel with
a plain form of the same arithmetic: one-hot vectors, a loop over time.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.model import Parameters, count_parameters

TRANSPOSED_AT_ONCE = 128


def no_progress() -> None:
    """Do nothing: the default of a progress callback."""


# More attributes than elsewhere: every buffer is allocated once, and has a name.
class Kernel:
    """Computes gradients of one shape and dtype: `load` the weights, then `compute` on them."""

    def __init__(
        self, vocabulary_size: int, hidden_size: int, *, seq_length: int, streams: int, dtype: str
    ) -> None:
        V, H, T, B = vocabulary_size, hidden_size, seq_length, streams
        n = T * B
        self.vocabulary_size, self.hidden_size = V, H
        self.seq_length, self.streams, self.dtype = T, B, dtype
        self._weights = Parameters(np.empty(count_parameters(V, H), dtype), V, H)
        self._rows = np.empty((V, H), dtype)  # Wxh x + bh, for each character x
        self._WhhT = np.empty((H, H), dtype)
        self._x, self._targets = np.empty((2, T, B), np.intp)
        self._inputs = np.empty((T, B, H), dtype)
        self._states = np.empty((T + 1, B, H), dtype)  # h[-1] ... h[T-1]
        self._y = np.empty((V, n), dtype)  # becomes p, then dy
        self._of_column = np.empty(n, dtype)
        self._dh = np.empty((T, B, H), dtype)
        self._slope = np.empty((T, B, H), dtype)  # tanh' = 1 - h*h
        self._da = np.empty((T, B, H), dtype)  # the gradient before the tanh
        self._from_later = np.empty((B, H), dtype)
        self._sums = np.empty((V, H), dtype)
        self._gradient = self._weights.like(np.empty_like(self._weights.flat))
        self._columns = np.arange(n)
        self._ones = np.ones(max(n, V), dtype)
        self._make_views()

    def _make_views(self) -> None:
        """Make the views that every step needs: by name, by row, by time step."""
        self._w, self._d = self._weights.named(), self._gradient.named()
        self._rows_of_sums = list(self._sums)
        self._forward = list(zip(self._inputs, self._states[:-1], self._states[1:], strict=True))
        self._backward = list(zip(self._dh, self._slope, self._da, strict=True))[::-1]

    def load(self, flat: NDArray[Any]) -> None:
        """Copy the weights, shape (P,), that the next computations use."""
        self._weights.flat[:] = flat
        np.add(self._w["Wxh"].T, self._w["bh"], out=self._rows)
        for start in range(0, len(self._WhhT), TRANSPOSED_AT_ONCE):
            some = slice(start, start + TRANSPOSED_AT_ONCE)  # a larger block misses the caches
            self._WhhT[:, some] = self._w["Whh"][some].T

    def compute(
        self,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        hidden: NDArray[Any],
        progress: Callable[[], None] = no_progress,
    ) -> tuple[float, Parameters, NDArray[Any]]:
        """Return (loss, gradient, next hidden state) of T characters of B streams, as new arrays.

        `inputs` and `targets` are ids below V, shape (B, T); `hidden`, shape (B, H), is the state
        before the first character, in the kernel's dtype: the caller has checked that. Loss (nats)
        and gradient are sums over time and streams; the gradient is not clipped. `progress` is
        called between the pieces of the work, at least once a time step.
        """
        self._x[:], self._targets[:] = inputs.T, targets.T
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite shows in the result
            self._states[0] = hidden
            self._compute_states(progress)
            loss = self._compute_loss()
            progress()
            self._back_through_time(progress)
            self._compute_gradient()
        progress()
        gradient = self._gradient.like(self._gradient.flat.copy())
        return loss, gradient, self._states[-1].copy()

    def _compute_states(self, progress: Callable[[], None]) -> None:
        """h[t] = tanh(Wxh x[t] + bh + Whh h[t-1]); the product with a one-hot x chooses a row."""
        # With mode "raise", numpy would write into a buffer of its own first.
        self._rows.take(self._x, axis=0, out=self._inputs, mode="clip")
        WhhT, add, tanh = self._WhhT, np.add, np.tanh
        for x, before, h in self._forward:  # each (B, H)
            before.dot(WhhT, h)
            add(h, x, h)
            tanh(h, h)
            progress()

    def _compute_loss(self) -> float:
        """Cross-entropy of softmax(Why h + by), and its gradient dy = p - 1[target], (V, n).

        The column's maximum is taken off first, so that no exponential overflows.
        """
        y, of_column = self._y, self._of_column
        h = self._states[1:].reshape(y.shape[1], -1)  # (n, H)
        self._w["Why"].dot(h.T, y)
        y += self._w["by"][:, None]
        y -= np.maximum.reduce(y, axis=0, out=of_column)
        at_targets = self._targets.reshape(-1) * len(of_column) + self._columns
        y_of_target = y.take(at_targets)
        p = np.exp(y, y)
        p /= self._ones[: len(p)].dot(p, of_column)
        p.reshape(-1)[at_targets] -= 1
        losses = np.log(of_column, of_column)
        losses -= y_of_target
        return float(np.add.reduce(losses, dtype=np.float64))

    def _back_through_time(self, progress: Callable[[], None]) -> None:
        """da[t] = tanh'(h[t]) * (Why^T dy[t] + Whh^T da[t+1])."""
        h, dy = self._states[1:], self._y
        dy.T.dot(self._w["Why"], self._dh.reshape(dy.shape[1], -1))
        np.multiply(h, h, self._slope)
        np.subtract(1, self._slope, self._slope)
        Whh, from_later, add, multiply = self._w["Whh"], self._from_later, np.add, np.multiply
        from_later[:] = 0
        for dh, slope, da in self._backward:  # each (B, H), the last time step first
            add(dh, from_later, da)
            multiply(da, slope, da)
            da.dot(Whh, from_later)
            progress()

    def _compute_gradient(self) -> None:
        d, dy, ones = self._d, self._y, self._ones[: self._y.shape[1]]
        da, before, h = (
            array.reshape(len(ones), -1)
            for array in (self._da, self._states[:-1], self._states[1:])
        )  # (n, H)
        d["Wxh"][:] = self._sum_by_character(da).T
        da.T.dot(before, d["Whh"])
        dy.dot(h, d["Why"])
        ones.dot(da, d["bh"])
        dy.dot(ones, d["by"])

    def _sum_by_character(self, da: NDArray[Any]) -> NDArray[Any]:
        """Sum the rows (n, H) of each character: (V, H). In order of time, then stream.

        A few rows are chosen by a product with ones and zeros. Many are sorted first: the rows of
        each character are then one block, and BLAS adds up a block in one call.
        """
        x, sums = self._x.reshape(-1), self._sums
        if len(x) <= len(sums):
            of_character = np.zeros((len(sums), len(x)), da.dtype)
            of_character[x, self._columns] = 1
            return of_character.dot(da, sums)
        rows, start = self._inputs.reshape(da.shape), 0  # that buffer is free again
        da.take(x.argsort(kind="stable"), axis=0, out=rows, mode="clip")
        sums[:] = 0
        for character, count in enumerate(np.bincount(x).tolist()):
            if count:
                block = rows[start : start + count]
                self._ones[:count].dot(block, self._rows_of_sums[character])
                start += count
        return sums
