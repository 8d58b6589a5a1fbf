"""The server's average, clip and Adagrad of two gradients: in its own form, or in plain NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics import clipped_adagrad
from manychar.numerics.model import count_parameters
from manychar.numerics.tree_reduction import TreeSum
from tests.benchmarks.pace import per_second
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task
from tests.numerics import specification

Arrays = tuple[NDArray[Any], NDArray[Any]]
STREAMS, BOUND, RATE = 32, 5.0, 0.1


def fused_form(weights: NDArray[Any], memory: NDArray[Any], gradients: Arrays) -> Arrays:
    """Do as the server does."""
    total = TreeSum[NDArray[Any]](len(gradients))
    for shard, gradient in enumerate(gradients):
        total.put((shard, shard), gradient)
    return clipped_adagrad.update(
        weights, memory, total.halves(), total_streams=STREAMS, clip=BOUND, learning_rate=RATE
    )


def plain_form(weights: NDArray[Any], memory: NDArray[Any], gradients: Arrays) -> Arrays:
    """Do the same with whole arrays."""
    gradient = specification.mean_and_clip(gradients[0] + gradients[1], STREAMS, BOUND)
    return specification.adagrad(weights, memory, gradient, RATE)


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Update again and again; the figure is updates a second, the note how many parameters."""
    V, _ = read_ids(task.text)
    size = count_parameters(V, task.hidden)
    draw = np.random.default_rng(0).standard_normal
    weights = draw(size).astype(task.dtype)
    memory = np.zeros_like(weights)
    gradients = (draw(size).astype(task.dtype), draw(size).astype(task.dtype))
    form = {"fused": fused_form, "plain": plain_form}[task.form]

    def step() -> None:
        nonlocal weights, memory
        weights, memory = form(weights, memory, gradients)

    def go(_: str) -> float:
        return per_second(step, task.seconds)

    per_second(step, min(task.seconds, 0.5))
    return f"{size:,}", go
