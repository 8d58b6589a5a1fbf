"""The gradient of one shard at one step, in buffers that are allocated once.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)        y[t] = Why h[t] + by        p[t] = softmax(y[t])

Letters of the shapes: V characters in the vocabulary, H hidden units, T characters a step, B
streams, n = T*B. Time comes first, (T, B, ...): what does not depend on the time step before is one
matrix product over n rows, and only two products a time step remain, one forward and one back. The
outputs are transposed, (V, n): a softmax then runs along memory. The tests compare the kernel with
a plain form of the same arithmetic: one-hot vectors, a loop over time.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.corpus import id_dtype
from manychar.numerics.model import Parameters, count_parameters

FEW_SETS = 1024  # bytes: rows whose length is a multiple of it fall into few sets of a cache
AT_ONCE, AT_ONCE_IN_FEW = 128, 16  # rows that are transposed: more would not stay in the cache
PIECE = 2**14  # hidden values computed between two calls of `progress`; at least a time step's

Arrays = tuple[NDArray[Any], ...]


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
        self._id_dtype = id_dtype(V)
        self._inputs = np.empty((n, H), dtype)  # becomes tanh' = 1 - h*h, then da by character
        self._states = np.empty((T + 1, B, H), dtype)  # h[-1] ... h[T-1]
        self._before, self._h = (
            array.reshape(n, H) for array in (self._states[:-1], self._states[1:])
        )
        self._y = np.empty((V, n), dtype)  # becomes p, then dy
        self._of_column = np.empty(n, dtype)
        self._da = np.empty((n, H), dtype)  # dh, becomes the gradient before the tanh
        self._from_later = np.empty((B, H), dtype)
        self._sums = np.empty((V, H), dtype)
        self._columns = np.arange(n)
        ones = np.ones(max(n, V), dtype)
        self._ones_by_character = ones[:V]
        self._ones = [ones[:count] for count in range(n + 1)]  # for every number of rows
        self._make_views()

    def _make_views(self) -> None:
        """Make the views that every step needs: by name, by row, by time step."""
        self._w = self._weights.named()
        self._rows_of_sums = list(self._sums)
        before, h = self._states[:-1], self._states[1:]
        inputs, da = self._inputs.reshape(h.shape), self._da.reshape(h.shape)
        self._forward = self._pieces(zip(inputs, before, h, strict=True))
        self._backward = self._pieces(list(zip(da, inputs, strict=True))[::-1])

    def _pieces(self, time_steps: Iterable[Arrays]) -> list[list[Arrays]]:
        steps, size = list(time_steps), max(1, PIECE // (self.streams * self.hidden_size))
        return [steps[start : start + size] for start in range(0, len(steps), size)]

    def load(self, flat: NDArray[Any]) -> None:
        """Copy the weights, shape (P,), that the next computations use."""
        self._weights.flat[:] = flat
        np.add(self._w["Wxh"].T, self._w["bh"], out=self._rows)
        at_once = AT_ONCE if self._WhhT[0].nbytes % FEW_SETS else AT_ONCE_IN_FEW
        for start in range(0, len(self._WhhT), at_once):
            some = slice(start, start + at_once)
            self._WhhT[:, some] = self._w["Whh"][some].T

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite shows in the result
    def compute(
        self,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        hidden: NDArray[Any],
        progress: Callable[[], None] = no_progress,
    ) -> tuple[float, Parameters, NDArray[Any]]:
        """Return (loss, gradient, next hidden state) of T characters of B streams, as new arrays.

        `inputs` and `targets` are ids, shape (B, T); `hidden`, shape (B, H), is the state
        before the first character, in the kernel's dtype: the caller has checked that. Loss (nats)
        and gradient are sums over time and streams; the gradient is not clipped. `progress` is
        called between the pieces of the work: after each PIECE hidden values, and large product.
        Raises IndexError for an id that is not below V.
        """
        self._x[:], self._targets[:] = inputs.T, targets.T
        self._states[0] = hidden
        self._compute_states(progress)
        loss = self._compute_loss(progress)
        self._back_through_time(progress)
        gradient = self._compute_gradient(progress)
        return loss, gradient, self._states[-1].copy()

    def _compute_states(self, progress: Callable[[], None]) -> None:
        """h[t] = tanh(Wxh x[t] + bh + Whh h[t-1]); the product with a one-hot x chooses a row."""
        # With mode "raise", numpy would write into a buffer of its own first.
        self._rows.take(self._x.reshape(-1), axis=0, out=self._inputs, mode="clip")
        WhhT, add, tanh = self._WhhT, np.add, np.tanh
        for piece in self._forward:
            for x, before, h in piece:  # each (B, H)
                before.dot(WhhT, h)
                add(h, x, h)
                tanh(h, h)
            progress()

    def _compute_loss(self, progress: Callable[[], None]) -> float:
        """Cross-entropy of softmax(Why h + by), and its gradient dy = p - 1[target], (V, n).

        The column's maximum is taken off first, so that no exponential overflows.
        """
        y, of_column = self._y, self._of_column
        self._w["Why"].dot(self._h.T, y)
        progress()
        y += self._w["by"][:, None]
        y -= np.maximum.reduce(y, axis=0, out=of_column)
        at_targets = self._targets.reshape(-1) * len(of_column) + self._columns
        y_of_target = y.take(at_targets)
        p = np.exp(y, y)
        p /= self._ones_by_character.dot(p, of_column)
        p.reshape(-1)[at_targets] -= 1
        losses = np.log(of_column, of_column)
        losses -= y_of_target
        progress()
        return float(np.add.reduce(losses, dtype=np.float64))

    def _back_through_time(self, progress: Callable[[], None]) -> None:
        """da[t] = tanh'(h[t]) * (Why^T dy[t] + Whh^T da[t+1])."""
        h, slopes = self._h, self._inputs  # that buffer is free again
        self._y.T.dot(self._w["Why"], self._da)
        progress()
        np.multiply(h, h, slopes)
        np.subtract(1, slopes, slopes)
        Whh, from_later, add, multiply = self._w["Whh"], self._from_later, np.add, np.multiply
        from_later[:] = 0
        first = self._backward[-1][-1][0]  # no hidden state of this step is before it
        for piece in self._backward:
            for da, slope in piece:  # each (B, H), the last time step first
                add(da, from_later, da)
                multiply(da, slope, da)
                if da is not first:
                    da.dot(Whh, from_later)
            progress()

    def _compute_gradient(self, progress: Callable[[], None]) -> Parameters:
        """Return the sums over time and streams: da and dy times what the weights multiplied.

        They are computed in the array that is returned, which is new: no copy.
        """
        gradient = self._weights.like(np.empty_like(self._weights.flat))
        d, da, dy = gradient.named(), self._da, self._y
        ones = self._ones[-1]
        d["Wxh"][:] = self._sum_by_character(da).T
        progress()
        da.T.dot(self._before, d["Whh"])
        progress()
        dy.dot(self._h, d["Why"])
        progress()
        ones.dot(da, d["bh"])
        dy.dot(ones, d["by"])
        progress()
        return gradient

    def _sum_by_character(self, da: NDArray[Any]) -> NDArray[Any]:
        """Sum the rows (n, H) of each character: (V, H). In order of time, then stream.

        A few rows are chosen by a product with ones and zeros. Many are sorted first: the rows of
        each character are then one block, and BLAS adds up a block in one call.
        """
        x, sums, ones, rows = self._x.reshape(-1), self._sums, self._ones, self._inputs
        if len(x) <= len(sums):
            of_character = np.zeros((len(sums), len(x)), da.dtype)
            of_character[x, self._columns] = 1
            return of_character.dot(da, sums)
        counts = np.bincount(x).tolist()
        if len(counts) > len(sums):
            raise IndexError(f"an id that is not in 0 … {len(sums) - 1}")
        order = x.astype(self._id_dtype).argsort(kind="stable")  # in linear time up to 16 bits
        da.take(order, axis=0, out=rows, mode="clip")
        sums[:] = 0
        start = 0
        for row_of_sums, count in zip(self._rows_of_sums, counts, strict=False):
            if count:
                ones[count].dot(rows[start : start + count], row_of_sums)
                start += count
        return sums
