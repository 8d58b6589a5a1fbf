import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manychar.numerics.tree_reduction import TreeSum
from tests.numerics.specification import tree_sum


def by_definition(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if len(values) == 1:
        return values[0]
    middle = 1
    while middle * 2 < len(values):
        middle *= 2
    total: NDArray[Any] = by_definition(values[:middle]) + by_definition(values[middle:])
    return total


def summands(count: int, seed: int = 0) -> list[NDArray[Any]]:
    """Numbers of many magnitudes: nearly every other order of adding them shows."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((count, 20)) * 10.0 ** generator.integers(-4, 5, (count, 20))
    return list(values.astype("float32"))


def in_order(values: Sequence[NDArray[Any]], order: Sequence[int]) -> NDArray[Any]:
    tree = TreeSum[NDArray[Any]](len(values))
    for index in order:
        assert not tree.complete
        tree.add(index, values[index])
    assert tree.complete
    return tree.result()


@pytest.mark.parametrize("count", range(1, 7))
def test_every_order_of_arrival_gives_the_same_bits(count: int) -> None:
    values = summands(count)
    expected = by_definition(values).tobytes()
    for order in itertools.permutations(range(count)):
        assert in_order(values, order).tobytes() == expected, order


@settings(deadline=None)
@given(st.integers(7, 70).flatmap(lambda count: st.permutations(range(count))))
def test_any_order_of_arrival_of_many_gives_the_same_bits(order: list[int]) -> None:
    values = summands(len(order))
    assert in_order(values, order).tobytes() == by_definition(values).tobytes()


@pytest.mark.parametrize("count", range(1, 40))
def test_tree_sum_is_the_definition(count: int) -> None:
    values = summands(count, seed=count)
    assert tree_sum(values).tobytes() == by_definition(values).tobytes()


def test_the_tree_is_another_sum_than_one_after_the_other() -> None:
    tiny = 2.0**-53
    values = [1.0, tiny, tiny, tiny]
    assert ((values[0] + values[1]) + values[2]) + values[3] == 1.0
    assert tree_sum(values) == 1.0 + 2.0**-52


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_minus_zero_stays_minus_zero(count: int) -> None:
    gradients = [np.array([-0.0, -0.0])] * count
    assert np.signbit(tree_sum(gradients)).all()
    assert math.copysign(1.0, tree_sum([-0.0] * count)) == -1.0


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_a_sum_with_a_summand_missing_has_no_value(count: int) -> None:
    values = summands(count)
    for missing in range(count):
        tree = TreeSum[NDArray[Any]](count)
        for index in set(range(count)) - {missing}:
            tree.add(index, values[index])
        assert not tree.complete
        with pytest.raises(ValueError, match="missing"):
            tree.result()


def test_in_shard_order_few_partial_sums_are_held() -> None:
    for count in range(1, 130):
        tree = TreeSum[float](count)
        for index in range(count):
            tree.add(index, 1.0)
            held = len(tree._waiting) + len(tree._halves)
            assert held <= math.floor(math.log2(count)) + 1
        assert not tree._waiting
        assert tree.result() == count


@pytest.mark.parametrize("count", [1, 2, 5])
def test_summands_are_not_modified(count: int) -> None:
    values = summands(count)
    for value in values:
        value.flags.writeable = False
    before = [value.tobytes() for value in values]
    tree_sum(values)  # a write would raise, too
    assert [value.tobytes() for value in values] == before
