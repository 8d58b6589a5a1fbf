"""The loss of a text: against the plain reference, and against itself read in other segments."""

import math

import numpy as np
import pytest

from manychar.numerics import evaluation as module
from manychar.numerics.evaluation import SHORTEST_SEGMENT, loss_of
from manychar.numerics.model import Parameters, count_parameters
from tests.numerics.reference import double, loss_fun

V, H = 7, 5


def parameters(dtype: str = "float64") -> Parameters:
    drawn = np.random.default_rng(0).standard_normal(count_parameters(V, H))
    return Parameters((0.3 * drawn).astype(dtype), V, H)


def ids(length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, V, length).astype(np.uint8)


@pytest.mark.parametrize("length", [2, 3, 60, SHORTEST_SEGMENT + 1])
def test_one_segment_is_the_reference(length: int) -> None:
    text = ids(length)
    loss, _, _ = loss_fun(
        double(parameters().named()), text[:-1].tolist(), text[1:].tolist(), np.zeros(H)
    )
    found = loss_of(parameters(), text)
    assert found == pytest.approx(loss / (length - 1), rel=1e-12)


@pytest.mark.parametrize("length", [5 * SHORTEST_SEGMENT + 3, 40 * SHORTEST_SEGMENT])
def test_many_segments_come_to_the_same_as_one(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ids(length)
    many = loss_of(parameters(), text)
    monkeypatch.setattr(module, "COLUMNS", 1)
    one = loss_of(parameters(), text)
    assert many == pytest.approx(one, rel=1e-9), "100 characters are enough to warm up"


def test_without_a_warm_up_the_segments_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ids(5 * SHORTEST_SEGMENT)
    exact = loss_of(parameters(), text)
    monkeypatch.setattr(module, "WARM_UP", 0)
    assert loss_of(parameters(), text) != pytest.approx(exact, rel=1e-6)


def test_float32_is_close() -> None:
    text = ids(4000)
    exact = loss_of(parameters(), text)
    assert loss_of(parameters("float32"), text) == pytest.approx(exact, rel=1e-5)


def test_nothing_overflows() -> None:
    huge = Parameters(parameters().flat * 1e4, V, H)
    assert math.isfinite(loss_of(huge, ids(500)))


def test_weights_of_zero_know_nothing() -> None:
    nothing = Parameters(np.zeros(count_parameters(V, H)), V, H)
    found = loss_of(nothing, ids(3000))
    assert found == pytest.approx(math.log(V))


@pytest.mark.parametrize("length", [60, 5 * SHORTEST_SEGMENT])
def test_progress_is_called_at_least_once_a_time_step(length: int) -> None:
    calls: list[None] = []
    loss_of(parameters(), ids(length), lambda: calls.append(None))
    assert len(calls) >= math.ceil((length - 1) / max(1, (length - 1) // SHORTEST_SEGMENT))
