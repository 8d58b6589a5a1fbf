import numpy as np
import pytest

from manychar.numerics import clipped_adagrad
from tests.numerics import specification


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("blocks", [0.001, 0.5, 1.0, 2.0, 2.7])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("shared_from", [clipped_adagrad.SHARED_FROM, 0])
def test_the_same_bits_as_the_pure_functions(
    monkeypatch: pytest.MonkeyPatch, shared_from: int, blocks: float, dtype: str, halves: int
) -> None:
    monkeypatch.setattr(clipped_adagrad, "SHARED_FROM", shared_from)
    size = max(1, int(blocks * clipped_adagrad.BLOCK_BYTES) // np.dtype(dtype).itemsize)
    generator = np.random.default_rng(size)
    weights = memory = np.zeros(size, dtype)
    pure_weights, pure_memory = weights, memory
    for _ in range(3):
        magnitude = 10.0 ** generator.uniform(-8, 3, size)
        total = (generator.standard_normal(size) * magnitude).astype(dtype)
        total[::5] = 0
        total[::7] *= -1
        other = generator.standard_normal(size).astype(dtype)
        parts = (total, other)[:halves]
        total = sum(parts[1:], start=parts[0])
        weights, memory = clipped_adagrad.update(
            weights, memory, parts, total_streams=48, clip=0.5, learning_rate=0.1
        )
        gradient = specification.mean_and_clip(total, 48, 0.5)
        pure_weights, pure_memory = specification.adagrad(pure_weights, pure_memory, gradient, 0.1)
        assert weights.tobytes() == pure_weights.tobytes()
        assert memory.tobytes() == pure_memory.tobytes()


def test_what_is_passed_in_is_not_modified() -> None:
    weights, memory, total = (np.full(5, value) for value in (1.0, 2.0, 3.0))
    for array in (weights, memory, total):
        array.flags.writeable = False
    new = clipped_adagrad.update(
        weights, memory, (total, total), total_streams=2, clip=5.0, learning_rate=0.1
    )
    assert not any(np.shares_memory(array, old) for array in new for old in (weights, memory))


def test_the_mean_is_a_division_and_no_product_with_the_reciprocal() -> None:
    total, zeros = np.arange(1, 100, dtype="float32") ** 2, np.zeros(99, "float32")
    squares = clipped_adagrad.update(
        zeros, zeros, (total,), total_streams=49, clip=1e9, learning_rate=0.1
    )
    quotient, product = total / np.float32(49), total * np.float32(1 / 49)
    assert squares[1].tobytes() == (quotient * quotient).tobytes()
    assert squares[1].tobytes() != (product * product).tobytes()


def test_clip_limits_each_element_and_does_not_hide_what_is_not_a_number() -> None:
    gradient = np.array([-7.0, -5.0, -4.9, -0.0, 4.9, np.inf, -np.inf, np.nan])
    zeros = np.zeros(len(gradient))
    squares = clipped_adagrad.update(
        zeros, zeros, (gradient,), total_streams=1, clip=5, learning_rate=0.1
    )
    expected = np.array([5.0, 5.0, 4.9, 0.0, 4.9, 5.0, 5.0, np.nan])
    np.testing.assert_array_equal(squares[1], expected * expected)
