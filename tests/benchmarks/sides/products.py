"""The matrix products of one step and nothing else: what BLAS itself reaches at these shapes."""

from collections.abc import Callable

import numpy as np

from tests.benchmarks.pace import per_second
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task


def flops_per_character(hidden: int, vocabulary_size: int) -> int:
    """Count the recurrent and output products, forward and back; the gather of inputs is none."""
    return 6 * (hidden * hidden + hidden * vocabulary_size)


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Multiply; the figure is GFLOP/s, the note the floating-point operations a character."""
    V, _ = read_ids(task.text)
    H, T, B = task.hidden, task.seq_length, task.streams
    n = T * B
    draw = np.random.default_rng(0).standard_normal
    Whh, WhhT, Why, y, hs, da = (
        draw(shape).astype(task.dtype) for shape in ((H, H), (H, H), (V, H), (V, n), (n, H), (n, H))
    )
    dWhh, dWhy, dh = np.empty_like(Whh), np.empty_like(Why), np.empty_like(hs)
    scores, from_later = np.empty_like(y), np.empty((B, H), task.dtype)
    at_times = [(hs[t * B : (t + 1) * B], da[t * B : (t + 1) * B]) for t in range(T)]

    def step() -> None:
        for h, _ in at_times:
            h.dot(WhhT, from_later)
        Why.dot(hs.T, scores)
        y.T.dot(Why, dh)
        for _, a in at_times:
            a.dot(Whh, from_later)
        da.T.dot(hs, dWhh)
        y.dot(hs, dWhy)

    flops = flops_per_character(H, V)

    def go(_: str) -> float:
        return 1e-9 * n * flops * per_second(step, task.seconds)

    per_second(step, min(task.seconds, 0.5))
    return str(flops), go
