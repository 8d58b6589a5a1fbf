"""The kernel against a plain reference, finite differences, and itself used again and again."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manychar.numerics.kernel import Kernel, no_progress
from manychar.numerics.model import Parameters, count_parameters
from tests.numerics import reference, specification

V, H, T = 7, 5, 6


def random_model(seed: int = 0, *, scale: float = 0.5, dtype: str = "float64") -> Parameters:
    generator = np.random.default_rng(seed)
    flat = scale * generator.standard_normal(count_parameters(V, H))
    return Parameters(flat.astype(dtype), V, H)


def random_batch(streams: int, seed: int = 1) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return (inputs, targets, hidden)."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(V, size=(streams, T + 1))
    return ids[:, :-1], ids[:, 1:], generator.uniform(-1.0, 1.0, (streams, H))


def loss_and_gradient(
    parameters: Parameters,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    hidden: NDArray[Any],
    progress: Callable[[], None] = no_progress,
) -> tuple[float, Parameters, NDArray[Any]]:
    """Compute in a kernel of its own."""
    streams, seq_length = inputs.shape
    kernel = Kernel(
        parameters.vocabulary_size,
        parameters.hidden_size,
        seq_length=seq_length,
        streams=streams,
        dtype=hidden.dtype.name,
    )
    kernel.load(parameters.flat)
    return kernel.compute(inputs, targets, hidden, progress)


@pytest.mark.parametrize("streams", [1, 2, 3, 16])
def test_a_batch_is_the_sum_of_its_streams_by_the_reference(streams: int) -> None:
    model = random_model()
    inputs, targets, hidden = random_batch(streams)
    loss, gradient, after = loss_and_gradient(model, inputs, targets, hidden)
    plain = [
        reference.loss_fun(reference.double(model.named()), x.tolist(), y.tolist(), h)
        for x, y, h in zip(inputs, targets, hidden, strict=True)
    ]
    assert loss == pytest.approx(sum(one[0] for one in plain), rel=1e-9)
    for name, array in gradient.named().items():
        expected = sum(one[1][name] for one in plain)
        np.testing.assert_allclose(array, expected, rtol=1e-9, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(after, [one[2] for one in plain], rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("vocabulary_size", "hidden_size", "seq_length", "streams"),
    [
        pytest.param(103, 100, 25, 16, id="a default run of version 0.1.0"),
        pytest.param(103, 100, 25, 1, id="min-char-rnn"),
        pytest.param(65, 64, 25, 64, id="a large batch"),
        pytest.param(300, 33, 10, 30, id="as many rows as characters"),
        pytest.param(300, 33, 7, 43, id="one row more than characters"),
        pytest.param(70_000, 3, 2, 5, id="ids of four bytes"),
        pytest.param(2, 1, 1, 1, id="the smallest"),
        pytest.param(3, 1, 30, 2, id="one hidden unit"),
        pytest.param(9, 17, 1, 64, id="one time step"),
    ],
)
def test_the_bits_are_those_of_the_plain_form(
    vocabulary_size: int, hidden_size: int, seq_length: int, streams: int, dtype: str
) -> None:
    generator, size = np.random.default_rng(0), (streams, seq_length + 1)
    kernel = Kernel(
        vocabulary_size, hidden_size, seq_length=seq_length, streams=streams, dtype=dtype
    )
    flat_size = count_parameters(vocabulary_size, hidden_size)
    for scale, exponent in ((0.01, 0), (0.1, 1), (0.5, 2), (1e30, 1)):  # the last overflows
        flat = (scale * generator.standard_normal(flat_size)).astype(dtype)
        frequencies = 1 / np.arange(1, vocabulary_size + 1) ** exponent
        ids = generator.choice(vocabulary_size, size, p=frequencies / frequencies.sum())
        hidden = generator.uniform(-1, 1, (streams, hidden_size)).astype(dtype)
        kernel.load(flat)
        loss, gradient, after = kernel.compute(ids[:, :-1], ids[:, 1:], hidden)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = specification.loss_and_gradient(
                Parameters(flat, vocabulary_size, hidden_size), ids[:, :-1], ids[:, 1:], hidden
            )
        np.testing.assert_equal(loss, expected[0])
        assert gradient.flat.tobytes() == expected[1].tobytes()
        assert after.tobytes() == expected[2].tobytes()


@pytest.mark.parametrize("name", reference.NAMES)
def test_the_gradient_is_the_slope_of_the_loss(name: str) -> None:
    model = random_model(2)
    inputs, targets, hidden = random_batch(3)
    _, gradient, _ = loss_and_gradient(model, inputs, targets, hidden)
    size = model.named()[name].size
    for index in np.random.default_rng(3).choice(size, min(size, 12), replace=False):
        losses = []
        for offset in (1e-5, -1e-5):
            moved = model.like(model.flat.copy())
            moved.named()[name].reshape(-1)[index] += offset
            losses.append(loss_and_gradient(moved, inputs, targets, hidden)[0])
        slope = (losses[0] - losses[1]) / 2e-5
        assert gradient.named()[name].flat[index] == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_softmax_of_huge_scores_does_not_overflow(dtype: str) -> None:
    model = np.zeros(count_parameters(2, 1), dtype)
    model[-2:] = 1e6, -1e6  # by: the first character is certain
    inputs, hidden = np.array([[0]]), np.zeros((1, 1), dtype=dtype)
    parameters = Parameters(model, 2, 1)
    loss, gradient, _ = loss_and_gradient(parameters, inputs, np.array([[1]]), hidden)
    assert loss == 2e6
    assert gradient.named()["by"].tolist() == [1.0, -1.0]
    loss, gradient, _ = loss_and_gradient(parameters, inputs, np.array([[0]]), hidden)
    assert loss == 0.0
    assert gradient.named()["by"].tolist() == [0.0, 0.0]


def test_huge_weights_everywhere_give_finite_numbers() -> None:
    inputs, targets, hidden = random_batch(3)
    loss, gradient, after = loss_and_gradient(random_model(scale=1e5), inputs, targets, hidden)
    assert math.isfinite(loss)
    assert np.isfinite(gradient.flat).all()
    assert np.isfinite(after).all()


def test_float32_agrees_with_float64_and_stays_float32() -> None:
    inputs, targets, hidden = random_batch(4)
    loss, gradient, after = loss_and_gradient(random_model(), inputs, targets, hidden)
    loss32, gradient32, after32 = loss_and_gradient(
        random_model(dtype="float32"), inputs, targets, hidden.astype("float32")
    )
    assert gradient32.flat.dtype == after32.dtype == np.float32
    assert loss32 == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(gradient32.flat, gradient.flat, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after32, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "i8"])
def test_the_width_of_the_ids_does_not_matter(dtype: str) -> None:
    model = random_model()
    inputs, targets, hidden = random_batch(2)
    loss, gradient, _ = loss_and_gradient(model, inputs, targets, hidden)
    loss_too, gradient_too, _ = loss_and_gradient(
        model, inputs.astype(dtype), targets.astype(dtype), hidden
    )
    assert loss_too == loss
    assert gradient_too.flat.tobytes() == gradient.flat.tobytes()


def test_a_character_that_is_not_read_has_a_gradient_of_zero() -> None:
    _, targets, hidden = random_batch(2)
    _, gradient, _ = loss_and_gradient(random_model(), np.full((2, T), 3), targets, hidden)
    assert np.flatnonzero(gradient.named()["Wxh"].any(axis=0)).tolist() == [3]


def test_inputs_are_not_modified() -> None:
    model = random_model()
    arrays = (model.flat, *random_batch(3))
    before = [array.tobytes() for array in arrays]
    _, gradient, after = loss_and_gradient(model, *arrays[1:])
    gradient.flat[:] = after[:] = 99.0
    assert [array.tobytes() for array in arrays] == before


@pytest.mark.parametrize("piece", [1, 3, 4])
def test_progress_is_told_after_some_time_steps_and_each_large_product(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manychar.numerics.kernel.PIECE", piece * 2 * H + 1)

    def calls(steps: int) -> int:
        told: list[None] = []
        ids = np.zeros((2, steps), dtype=np.intp)
        loss_and_gradient(random_model(), ids, ids, np.zeros((2, H)), lambda: told.append(None))
        return len(told)

    large_products = 5  # scores, dh, and the gradients of Wxh, Whh and Why
    assert calls(1) >= 2 + large_products
    assert calls(36) - calls(12) == 2 * 24 // piece
    monkeypatch.setattr("manychar.numerics.kernel.PIECE", 1)
    assert calls(30) - calls(10) == 2 * 20, "a time step is not cut"


@pytest.mark.parametrize("calls", [0, 3, T, T + 2, 2 * T + 2])
def test_a_progress_callback_may_end_a_computation(
    calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manychar.numerics.kernel.PIECE", 1)
    model, batch, left = random_model(), random_batch(2), [None] * calls
    kernel = Kernel(V, H, seq_length=T, streams=2, dtype="float64")
    kernel.load(model.flat)
    loss, gradient, _ = kernel.compute(*batch)
    before, errors = gradient.flat.tobytes(), np.geterr()
    with pytest.raises(IndexError):
        kernel.compute(*random_batch(2, seed=5), left.pop)
    assert np.geterr() == errors
    assert gradient.flat.tobytes() == before
    loss_after, gradient_after, _ = kernel.compute(*batch)
    assert (loss_after, gradient_after.flat.tobytes()) == (loss, before)


@pytest.mark.parametrize("streams", [1, 16])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kernel_that_is_used_again_remembers_nothing(streams: int, dtype: str) -> None:
    kernel = Kernel(V, H, seq_length=T, streams=streams, dtype=dtype)
    results, expected = [], []
    for seed in range(4):
        model = random_model(seed, dtype=dtype)
        inputs, targets, hidden = random_batch(streams, seed)
        hidden = hidden.astype(dtype)
        kernel.load(model.flat)
        results.append(kernel.compute(inputs, targets, hidden))
        expected.append(loss_and_gradient(model, inputs, targets, hidden))
    for (loss, gradient, after), (loss_alone, gradient_alone, after_alone) in zip(
        results, expected, strict=True
    ):
        assert loss == loss_alone
        assert gradient.flat.tobytes() == gradient_alone.flat.tobytes()
        assert after.tobytes() == after_alone.tobytes()


def test_loaded_weights_are_a_copy() -> None:
    model, (inputs, targets, hidden) = random_model(), random_batch(2)
    kernel = Kernel(V, H, seq_length=T, streams=2, dtype="float64")
    kernel.load(model.flat)
    before = kernel.compute(inputs, targets, hidden)[0]
    model.flat[:] = 0
    assert kernel.compute(inputs, targets, hidden)[0] == before


@pytest.mark.parametrize("hidden_size", [127, 128, 129, 300])
def test_weights_of_any_size_are_transposed_whole(hidden_size: int) -> None:
    generator = np.random.default_rng(0)
    flat = 0.1 * generator.standard_normal(count_parameters(V, hidden_size))
    model = Parameters(flat, V, hidden_size)
    ids = generator.integers(V, size=(1, T + 1))
    loss, _, _ = loss_and_gradient(model, ids[:, :-1], ids[:, 1:], np.zeros((1, hidden_size)))
    plain = reference.loss_fun(
        model.named(), ids[0, :-1].tolist(), ids[0, 1:].tolist(), np.zeros(hidden_size)
    )
    assert loss == pytest.approx(plain[0], rel=1e-12)
