"""What the machine's matrix product reaches at its best: square ones of several sizes."""

from collections.abc import Callable

import numpy as np

from tests.benchmarks.pace import per_second
from tests.benchmarks.task import Task

SIZES = (1024, 1536, 2048)


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Multiply; the figure is the best size's GFLOP/s."""
    draw = np.random.default_rng(0).standard_normal
    squares = [draw((2, size, size)).astype(task.dtype) for size in SIZES]

    def gflops(two: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", seconds: float) -> float:
        a, b = two
        out = np.empty_like(a)
        return 2e-9 * len(a) ** 3 * per_second(lambda: np.dot(a, b, out), seconds)

    def go(_: str) -> float:
        return max(gflops(two, task.seconds / len(SIZES)) for two in squares)

    go("")
    return "", go
