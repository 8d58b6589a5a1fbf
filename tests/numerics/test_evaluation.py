"""The loss of a text: against the plain reference, and against itself read in other segments."""

import math

import numpy as np
import pytest

from manychar.numerics import evaluation as module
from manychar.numerics.evaluation import SHORTEST_SEGMENT, Evaluation, evaluate
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
    found = evaluate(parameters(), text)
    assert found.characters == length - 1
    assert found.nats == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("length", [5 * SHORTEST_SEGMENT + 3, 40 * SHORTEST_SEGMENT])
def test_many_segments_come_to_the_same_as_one(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ids(length)
    many = evaluate(parameters(), text)
    monkeypatch.setattr(module, "COLUMNS", 1)
    one = evaluate(parameters(), text)
    assert many.characters == one.characters == length - 1
    assert many.nats == pytest.approx(one.nats, rel=1e-9), "100 characters are enough to warm up"


def test_without_a_warm_up_the_segments_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ids(5 * SHORTEST_SEGMENT)
    exact = evaluate(parameters(), text).nats
    monkeypatch.setattr(module, "WARM_UP", 0)
    assert evaluate(parameters(), text).nats != pytest.approx(exact, rel=1e-6)


def test_float32_is_close() -> None:
    text = ids(4000)
    exact = evaluate(parameters(), text).nats
    assert evaluate(parameters("float32"), text).nats == pytest.approx(exact, rel=1e-5)


def test_nothing_overflows() -> None:
    huge = Parameters(parameters().flat * 1e4, V, H)
    assert math.isfinite(evaluate(huge, ids(500)).nats)


def test_weights_of_zero_know_nothing() -> None:
    nothing = Parameters(np.zeros(count_parameters(V, H)), V, H)
    found = evaluate(nothing, ids(3000))
    assert found.nats_a_character == pytest.approx(math.log(V))
    assert found.bits_a_character == pytest.approx(math.log2(V))


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_next_character_is_an_error(length: int) -> None:
    with pytest.raises(ValueError, match="less than two characters"):
        evaluate(parameters(), ids(length))


@pytest.mark.parametrize("length", [60, 5 * SHORTEST_SEGMENT])
def test_progress_is_called_at_least_once_a_time_step(length: int) -> None:
    calls: list[None] = []
    evaluate(parameters(), ids(length), lambda: calls.append(None))
    assert len(calls) >= math.ceil((length - 1) / max(1, (length - 1) // SHORTEST_SEGMENT))


def test_means_are_by_character() -> None:
    assert Evaluation(10.0, 5).nats_a_character == 2.0
