import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manychar.numerics import adagrad

SIZE = 2_000


def gradients(count: int, dtype: str) -> list[NDArray[Any]]:
    generator = np.random.default_rng(5)
    magnitude = 10.0 ** generator.uniform(-8, 1, (count, SIZE))
    return list((generator.standard_normal((count, SIZE)) * magnitude).astype(dtype))


def test_bit_for_bit_a_loop_over_plain_floats() -> None:
    weights = np.random.default_rng(6).standard_normal(SIZE)
    memory = adagrad.init(weights)
    plain_weights, plain_memory = weights.tolist(), [0.0] * SIZE
    for gradient in gradients(4, "float64"):
        weights, memory = adagrad.update(weights, memory, gradient, 0.1)
        for i, g in enumerate(gradient.tolist()):
            plain_memory[i] += g * g
            plain_weights[i] += -0.1 * g / math.sqrt(plain_memory[i] + 1e-8)
    assert memory.tolist() == plain_memory
    assert weights.tolist() == plain_weights


def test_in_float32_every_operation_is_rounded_to_float32() -> None:
    weights = np.random.default_rng(6).standard_normal(SIZE).astype("float32")
    memory = adagrad.init(weights)
    plain_weights, plain_memory = list(weights), [np.float32(0.0)] * SIZE
    rate, epsilon = np.float32(0.1), np.float32(1e-8)
    for gradient in gradients(4, "float32"):
        weights, memory = adagrad.update(weights, memory, gradient, 0.1)
        for i, g in enumerate(gradient):
            plain_memory[i] = plain_memory[i] + g * g
            plain_weights[i] = plain_weights[i] - rate * g / np.sqrt(plain_memory[i] + epsilon)
    assert weights.dtype == memory.dtype == np.float32
    assert memory.tobytes() == np.array(plain_memory).tobytes()
    assert weights.tobytes() == np.array(plain_weights).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_memory_begins_with_zeros_of_the_weights_shape_and_dtype(dtype: str) -> None:
    memory = adagrad.init(np.ones(7, dtype=dtype))
    assert (memory.shape, memory.dtype) == ((7,), np.dtype(dtype))
    assert not memory.any()


def test_what_is_passed_in_is_not_modified() -> None:
    weights, memory, gradient = (np.full(5, value) for value in (1.0, 2.0, 3.0))
    new_weights, new_memory = adagrad.update(weights, memory, gradient, 0.1)
    assert weights.tolist() == [1.0] * 5
    assert memory.tolist() == [2.0] * 5
    assert gradient.tolist() == [3.0] * 5
    for new in (new_weights, new_memory):
        assert not any(np.shares_memory(new, old) for old in (weights, memory, gradient))


def test_a_gradient_of_zero_changes_nothing() -> None:
    weights, memory = np.array([1.0, -0.0]), np.array([0.0, 4.0])
    new_weights, new_memory = adagrad.update(weights, memory, np.zeros(2), 0.1)
    assert new_weights.tobytes() == weights.tobytes()
    assert new_memory.tobytes() == memory.tobytes()
