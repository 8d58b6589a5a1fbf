import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics import clipped_adagrad

SIZE = 2_000
Arrays = tuple[NDArray[Any], NDArray[Any]]


def adagrad(weights: NDArray[Any], memory: NDArray[Any], gradient: NDArray[Any]) -> Arrays:
    """Return (weights, memory) after an update whose mean and clip change nothing."""
    return clipped_adagrad.update(
        weights, memory, (gradient,), total_streams=1, clip=np.inf, learning_rate=0.1
    )


def gradients(count: int, dtype: str) -> list[NDArray[Any]]:
    generator = np.random.default_rng(5)
    magnitude = 10.0 ** generator.uniform(-8, 1, (count, SIZE))
    return list((generator.standard_normal((count, SIZE)) * magnitude).astype(dtype))


def test_bit_for_bit_a_loop_over_plain_floats() -> None:
    weights = np.random.default_rng(6).standard_normal(SIZE)
    memory = np.zeros_like(weights)
    plain_weights, plain_memory = weights.tolist(), [0.0] * SIZE
    for gradient in gradients(4, "float64"):
        weights, memory = adagrad(weights, memory, gradient)
        for i, g in enumerate(gradient.tolist()):
            plain_memory[i] += g * g
            plain_weights[i] += -0.1 * g / math.sqrt(plain_memory[i] + 1e-8)
    assert memory.tolist() == plain_memory
    assert weights.tolist() == plain_weights


def test_in_float32_every_operation_is_rounded_to_float32() -> None:
    weights = np.random.default_rng(6).standard_normal(SIZE).astype("float32")
    memory = np.zeros_like(weights)
    plain_weights, plain_memory = list(weights), [np.float32(0.0)] * SIZE
    rate, epsilon = np.float32(0.1), np.float32(1e-8)
    for gradient in gradients(4, "float32"):
        weights, memory = adagrad(weights, memory, gradient)
        for i, g in enumerate(gradient):
            plain_memory[i] = plain_memory[i] + g * g
            plain_weights[i] = plain_weights[i] - rate * g / np.sqrt(plain_memory[i] + epsilon)
    assert weights.dtype == memory.dtype == np.float32
    assert memory.tobytes() == np.array(plain_memory).tobytes()
    assert weights.tobytes() == np.array(plain_weights).tobytes()


def test_a_gradient_of_zero_changes_nothing() -> None:
    weights, memory = np.array([1.0, -0.0]), np.array([0.0, 4.0])
    new_weights, new_memory = adagrad(weights, memory, np.zeros(2))
    assert new_weights.tobytes() == weights.tobytes()
    assert new_memory.tobytes() == memory.tobytes()
