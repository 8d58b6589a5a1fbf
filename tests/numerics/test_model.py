import itertools
from typing import Any

import numpy as np
import pytest

from manychar.numerics import model as model_module
from manychar.numerics.model import Parameters, count_parameters, initialize, sample
from tests.numerics import reference

V, H = 7, 5


def random_model(seed: int = 0, *, scale: float = 0.5, dtype: str = "float64") -> Parameters:
    generator = np.random.default_rng(seed)
    flat = scale * generator.standard_normal(count_parameters(V, H))
    return Parameters(flat.astype(dtype), V, H)


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


# ---- Parameters


def test_the_five_arrays_are_views_of_flat_in_their_order() -> None:
    model = Parameters(np.arange(float(count_parameters(V, H))), V, H)
    shapes = {name: array.shape for name, array in model.named().items()}
    assert shapes == {"Wxh": (H, V), "Whh": (H, H), "Why": (V, H), "bh": (H,), "by": (V,)}
    assert tuple(shapes) == reference.NAMES
    in_order = [model.named()[name] for name in ("Wxh", "Whh", "Why", "bh", "by")]
    assert np.concatenate([array.ravel() for array in in_order]).tolist() == model.flat.tolist()
    for array in in_order:
        array[...] = -1.0
    assert (model.flat == -1.0).all()


def test_a_flat_vector_of_another_length_is_refused() -> None:
    size = count_parameters(V, H)
    for shape in ((size - 1,), (size + 1,), (size, 1)):
        with pytest.raises(ValueError, match=rf"expected \({size},\)"):
            Parameters(np.zeros(shape), V, H)


def test_initial_weights_are_drawn_in_pieces_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two pieces a signal is handled: the weights of a large model take seconds."""
    whole, sizes, default_rng = initialize(V, H, seed=3), list[int](), np.random.default_rng

    class Recorded:
        def __init__(self, seed: list[int]) -> None:
            self._generator = default_rng(seed)

        def standard_normal(self, size: int) -> Any:
            sizes.append(size)
            return self._generator.standard_normal(size)

    monkeypatch.setattr(np.random, "default_rng", Recorded)
    monkeypatch.setattr(model_module, "DRAWN_AT_ONCE", 8)
    assert initialize(V, H, seed=3).flat.tobytes() == whole.flat.tobytes()
    assert sizes == [8] * 11 + [7]  # V H + H H + H V


def test_initial_weights_are_small_and_normal_and_initial_biases_zero() -> None:
    model = initialize(60, 100, dtype="float64")
    for array in list(model.named().values())[:3]:
        assert array.std() == pytest.approx(0.01, rel=0.05)
        assert abs(array.mean()) < 0.0005
    share_within_one_sigma = (np.abs(model.flat[: -100 - 60]) < 0.01).mean()
    assert share_within_one_sigma == pytest.approx(0.6827, abs=0.02)
    assert not model.named()["bh"].any()
    assert not model.named()["by"].any()


def test_initial_weights_are_a_function_of_the_seed() -> None:
    assert initialize(V, H, seed=3).flat.tobytes() == initialize(V, H, seed=3).flat.tobytes()
    assert initialize(V, H, seed=3).flat.tobytes() != initialize(V, H, seed=4).flat.tobytes()


def test_initial_weights_are_drawn_in_the_order_of_the_arrays() -> None:
    """Another recipe would give every recorded run another beginning."""
    model, generator = initialize(V, H, dtype="float64", seed=3), np.random.default_rng([3, 0])
    for array in list(model.named().values())[:3]:
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
