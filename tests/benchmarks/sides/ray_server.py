"""Ray's parameter-server pattern, in the synchronous form of its documentation.

A server actor averages, clips and updates by Adagrad with plain NumPy, in place; two worker actors
return a preset gradient. As there, the weights are looked at every ten steps, which also keeps the
number of waiting calls small.
"""

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from manychar.numerics.model import count_parameters
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task

WORKERS = 2
LOOK_EVERY = 10
STREAMS, BOUND, RATE = 2, 5.0, 0.1


class ParameterServer:
    """Holds the weights, and applies gradients to them."""

    def __init__(self, size: int, dtype: str) -> None:
        self.weights = np.full(size, 0.01, dtype)
        self.memory = np.zeros(size, dtype)

    def apply_gradients(self, *gradients: Any) -> Any:
        """Average, clip, update in place; return the weights."""
        gradient = gradients[0] + gradients[1]
        gradient /= STREAMS
        np.clip(gradient, -BOUND, BOUND, out=gradient)
        self.memory += gradient * gradient
        self.weights -= RATE * gradient / np.sqrt(self.memory + 1e-8)
        return self.weights

    def get_weights(self) -> Any:
        """Return the weights."""
        return self.weights


class Worker:
    """Takes weights, and computes nothing."""

    def __init__(self, size: int, dtype: str) -> None:
        self.gradient = np.full(size, 1e-3, dtype)

    def compute_gradients(self, weights: Any) -> Any:
        """Return the preset gradient."""
        return self.gradient


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Step on; the figure is steps a second, the note how many parameters there are."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray: Any = importlib.import_module("ray")
    ray.init(
        num_cpus=WORKERS + 1,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=400 * 2**20,
    )
    V, _ = read_ids(task.text)
    size = count_parameters(V, task.hidden)
    server = ray.remote(ParameterServer).remote(size, task.dtype)
    workers = [ray.remote(Worker).remote(size, task.dtype) for _ in range(WORKERS)]
    current = server.get_weights.remote()

    def train(seconds: float) -> float:
        nonlocal current
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(LOOK_EVERY):
                gradients = [worker.compute_gradients.remote(current) for worker in workers]
                current = server.apply_gradients.remote(*gradients)
            ray.get(current)
            done += LOOK_EVERY
        return done / (time.perf_counter() - start)

    train(1.0)
    return f"{size:,}", lambda _: train(task.seconds)
