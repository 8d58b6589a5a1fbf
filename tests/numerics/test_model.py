import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manychar.numerics.model import (
    Parameters,
    count_parameters,
    initialize,
    loss_and_gradient,
    sample,
)
from tests.numerics import reference

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


def model_of_distribution(probabilities: list[float]) -> Parameters:
    """A model that gives these probabilities whatever it has read."""
    size = len(probabilities)
    flat = np.zeros(count_parameters(size, 1))
    flat[-size:] = np.log(probabilities)
    return Parameters(flat, size, 1)


def draw(model: Parameters, count: int, **options: Any) -> list[int]:
    generator = np.random.default_rng(options.pop("seed", 0))
    prime = options.pop("prime", np.array([0]))
    return list(itertools.islice(sample(model, generator, prime=prime, **options), count))


# ---- Loss and gradient


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
    model = model_of_distribution([1.0, 1.0]).flat.astype(dtype)
    model[-2:] = 1e6, -1e6  # by: the first character is certain
    inputs, hidden = np.array([[0]]), np.zeros((1, 1), dtype=dtype)
    parameters = Parameters(model, 2, 1)
    loss, gradient, _ = loss_and_gradient(parameters, inputs, np.array([[1]]), hidden)
    assert loss == 2e6
    assert gradient.by.tolist() == [1.0, -1.0]
    loss, gradient, _ = loss_and_gradient(parameters, inputs, np.array([[0]]), hidden)
    assert loss == 0.0
    assert gradient.by.tolist() == [0.0, 0.0]


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
    assert np.flatnonzero(gradient.Wxh.any(axis=0)).tolist() == [3]


@pytest.mark.parametrize("wrong", ["targets", "hidden units", "hidden streams"])
def test_shapes_that_disagree_are_refused(wrong: str) -> None:
    inputs, targets, hidden = random_batch(2)
    if wrong == "targets":
        targets = targets[:, 1:]
    else:
        hidden = hidden[:, 1:] if wrong == "hidden units" else hidden[1:]
    with pytest.raises(ValueError, match=r"targets .* hidden .* for inputs"):
        loss_and_gradient(random_model(), inputs, targets, hidden)


@pytest.mark.parametrize("which", ["inputs", "targets"])
def test_an_id_beyond_the_vocabulary_is_refused(which: str) -> None:
    inputs, targets, hidden = random_batch(2)
    (inputs if which == "inputs" else targets)[1, 2] = V
    with pytest.raises(IndexError):
        loss_and_gradient(random_model(), inputs.copy(), targets.copy(), hidden)


def test_inputs_are_not_modified() -> None:
    model = random_model()
    arrays = (model.flat, *random_batch(3))
    before = [array.tobytes() for array in arrays]
    _, gradient, after = loss_and_gradient(model, *arrays[1:])
    gradient.flat[:] = after[:] = 99.0
    assert [array.tobytes() for array in arrays] == before


def test_progress_is_told_at_least_once_a_time_step_in_each_direction() -> None:
    def calls(steps: int) -> int:
        told: list[None] = []
        ids = np.zeros((2, steps), dtype=np.intp)
        loss_and_gradient(random_model(), ids, ids, np.zeros((2, H)), lambda: told.append(None))
        return len(told)

    assert calls(1) >= 2
    assert calls(30) - calls(10) >= 2 * 20


# ---- Parameters


def test_the_five_arrays_are_views_of_flat_in_their_order() -> None:
    model = Parameters(np.arange(float(count_parameters(V, H))), V, H)
    shapes = {name: array.shape for name, array in model.named().items()}
    assert shapes == {"Wxh": (H, V), "Whh": (H, H), "Why": (V, H), "bh": (H,), "by": (V,)}
    assert tuple(shapes) == reference.NAMES
    in_order = (model.Wxh, model.Whh, model.Why, model.bh, model.by)
    assert np.concatenate([array.ravel() for array in in_order]).tolist() == model.flat.tolist()
    for array in in_order:
        array[...] = -1.0
    assert (model.flat == -1.0).all()


def test_a_flat_vector_of_another_length_is_refused() -> None:
    size = count_parameters(V, H)
    for shape in ((size - 1,), (size + 1,), (size, 1)):
        with pytest.raises(ValueError, match=rf"expected \({size},\)"):
            Parameters(np.zeros(shape), V, H)


def test_initial_weights_are_small_and_normal_and_initial_biases_zero() -> None:
    model = initialize(60, 100, dtype="float64")
    for array in (model.Wxh, model.Whh, model.Why):
        assert array.std() == pytest.approx(0.01, rel=0.05)
        assert abs(array.mean()) < 0.0005
    share_within_one_sigma = (np.abs(model.flat[: -100 - 60]) < 0.01).mean()
    assert share_within_one_sigma == pytest.approx(0.6827, abs=0.02)
    assert not model.bh.any()
    assert not model.by.any()


def test_initial_weights_are_a_function_of_the_seed() -> None:
    assert initialize(V, H, seed=3).flat.tobytes() == initialize(V, H, seed=3).flat.tobytes()
    assert initialize(V, H, seed=3).flat.tobytes() != initialize(V, H, seed=4).flat.tobytes()


def test_initial_weights_are_drawn_in_the_order_of_the_arrays() -> None:
    """Another recipe would give every recorded run another beginning."""
    model, generator = initialize(V, H, dtype="float64", seed=3), np.random.default_rng([3, 0])
    for array in (model.Wxh, model.Whh, model.Why):
        assert array.tolist() == (0.01 * generator.standard_normal(array.shape)).tolist()


def test_initial_weights_in_float32_are_those_in_float64_rounded() -> None:
    narrow, wide = initialize(V, H).flat, initialize(V, H, dtype="float64").flat
    assert narrow.dtype == np.float32
    assert wide.dtype == np.float64
    assert narrow.tobytes() == wide.astype("float32").tobytes()


# ---- Sampling


def test_a_sample_is_a_function_of_the_seed() -> None:
    model = random_model()
    assert draw(model, 50, seed=1) == draw(model, 50, seed=1)
    assert draw(model, 50, seed=1) != draw(model, 50, seed=2)


def test_temperature_zero_takes_the_likeliest_after_the_prime_and_all_before_it() -> None:
    model = random_model(4, scale=2.0)
    weights = reference.double(model.named())
    for prime in ([1], [2], [3, 1, 4, 1, 5], [5, 1, 4, 1, 3]):
        read = list(prime)
        for _ in range(30):
            read.append(int(np.argmax(reference.scores_after(weights, read))))
        assert draw(model, 30, prime=np.array(prime), temperature=0.0) == read[len(prime) :]


def test_the_whole_prime_counts() -> None:
    model = random_model(4, scale=2.0)
    samples = {
        tuple(draw(model, 30, prime=np.array([first, 1]), temperature=0.0)) for first in range(V)
    }
    assert len(samples) > 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_characters_come_as_often_as_the_distribution_says(temperature: float) -> None:
    probabilities = [0.4, 0.05, 0.25, 0.3]
    drawn = draw(model_of_distribution(probabilities), 10_000, temperature=temperature)
    sharpened = np.array(probabilities) ** (1 / temperature)
    expected = sharpened / sharpened.sum()
    np.testing.assert_allclose(np.bincount(drawn) / 10_000, expected, atol=0.02)


def test_top_k_draws_among_the_k_likeliest_only() -> None:
    drawn = draw(model_of_distribution([0.3, 0.1, 0.2, 0.4]), 5_000, top_k=2)
    frequencies = np.bincount(drawn, minlength=4) / 5_000
    np.testing.assert_allclose(frequencies, [3 / 7, 0.0, 0.0, 4 / 7], atol=0.03)
    assert frequencies[1] == frequencies[2] == 0.0


def test_a_k_of_the_whole_vocabulary_or_more_limits_nothing() -> None:
    model = random_model()
    assert draw(model, 50, top_k=V) == draw(model, 50, top_k=V + 1) == draw(model, 50)


def test_a_k_of_one_is_temperature_zero() -> None:
    model = random_model()
    assert draw(model, 50, top_k=1) == draw(model, 50, temperature=0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"prime": np.array([], dtype=int)},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": -1},
    ],
)
def test_what_cannot_be_sampled_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sampling needs"):
        draw(random_model(), 1, **options)
