import numpy as np
import pytest

from manychar.numerics import clipped_adagrad
from manychar.numerics.clipped_adagrad import NotFiniteError
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


def test_clip_limits_each_element() -> None:
    gradient = np.array([-7.0, -5.0, -4.9, -0.0, 4.9, 1e300])
    zeros = np.zeros(len(gradient))
    squares = clipped_adagrad.update(
        zeros, zeros, (gradient,), total_streams=1, clip=5, learning_rate=0.1
    )
    expected = np.array([5.0, 5.0, 4.9, 0.0, 4.9, 5.0])
    np.testing.assert_array_equal(squares[1], expected * expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shared_from", [clipped_adagrad.SHARED_FROM, 0])
@pytest.mark.parametrize("place", [0, 0.4, 0.99])
def test_a_mean_that_is_not_finite_is_found_before_the_clip_hides_it(
    monkeypatch: pytest.MonkeyPatch, shared_from: int, place: float, value: float
) -> None:
    monkeypatch.setattr(clipped_adagrad, "SHARED_FROM", shared_from)
    monkeypatch.setattr(clipped_adagrad, "BLOCK_BYTES", 4000)
    gradient = np.ones(5_500, "float32")
    zeros = np.zeros_like(gradient)
    gradient[int(place * len(gradient))] = value
    for halves in ((gradient,), (np.ones_like(gradient), gradient)):
        with pytest.raises(NotFiniteError):
            clipped_adagrad.update(
                zeros, zeros, halves, total_streams=2, clip=5.0, learning_rate=0.1
            )
    assert not zeros.any()


def test_halves_whose_sum_overflows_are_found_and_large_finite_ones_are_not() -> None:
    large, zeros = np.full(10, 3e38, "float32"), np.zeros(10, "float32")
    with pytest.raises(NotFiniteError):
        clipped_adagrad.update(
            zeros, zeros, (large, large), total_streams=2, clip=5.0, learning_rate=0.1
        )
    weights, _ = clipped_adagrad.update(
        zeros, zeros, (large,), total_streams=2, clip=5.0, learning_rate=0.1
    )
    assert np.isfinite(weights).all()


@pytest.mark.filterwarnings("error")
def test_a_rate_that_is_too_large_for_the_weights_warns_of_nothing() -> None:
    """The next step's gradient is not finite, and ends the run."""
    gradient, memory = np.full(3, 5.0, "float32"), np.zeros(3, "float32")
    weights, _ = clipped_adagrad.update(
        np.zeros(3, "float32"), memory, (gradient,), total_streams=1, clip=5.0, learning_rate=1e38
    )
    assert not np.isfinite(weights).any()
