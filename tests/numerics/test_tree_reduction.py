import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manychar.numerics.tree_reduction import (
    Range,
    TreeSum,
    ancestors,
    children,
    cover,
    largest_cover,
    sum_in_tree,
)
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
        tree.put((index, index), values[index])
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
            tree.put((index, index), values[index])
        assert not tree.complete
        with pytest.raises(ValueError, match="missing"):
            tree.result()


def test_in_shard_order_few_partial_sums_are_held() -> None:
    for count in range(1, 130):
        tree = TreeSum[float](count)
        for index in range(count):
            tree.put((index, index), 1.0)
            assert len(tree.nodes) <= math.floor(math.log2(count)) + 1
        assert len(tree.nodes) == min(2, count), "the root's halves"
        assert tree.result() == count


@pytest.mark.parametrize("count", [1, 2, 5])
def test_summands_are_not_modified(count: int) -> None:
    values = summands(count)
    for value in values:
        value.flags.writeable = False
    before = [value.tobytes() for value in values]
    tree_sum(values)  # a write would raise, too
    assert [value.tobytes() for value in values] == before


# Nodes and covers.


def nodes_of(count: int) -> list[Range]:
    """Return the nodes of the tree, by its definition: adjacent pairs, an odd last one carried."""
    level = [(i, i) for i in range(count)]
    found = list(level)
    while len(level) > 1:
        odd = level[len(level) - len(level) % 2 :]
        pairs = zip(level[::2], level[1::2], strict=False)
        made = [(a[0], b[1]) for a, b in pairs]
        found += made
        level = made + odd
    return found


def ranges_of(count: int) -> list[Range]:
    return list(itertools.combinations_with_replacement(range(count), 2))


@pytest.mark.parametrize("count", range(1, 34))
def test_nodes_are_named_by_their_shards(count: int) -> None:
    nodes = nodes_of(count)
    assert len(nodes) == len(set(nodes)) == 2 * count - 1
    parents = {child: node for node in nodes if node[0] < node[1] for child in children(node)}
    assert parents.keys() == set(nodes) - {(0, count - 1)}
    for node in nodes:
        above = ancestors(count, node)
        chain = [node, *above]
        assert all(parents[a] == b for a, b in itertools.pairwise(chain))
        assert chain[-1] == (0, count - 1)


@pytest.mark.parametrize("count", range(1, 34))
def test_a_cover_is_the_smallest_set_of_nodes_with_exactly_these_shards(count: int) -> None:
    nodes = set(nodes_of(count))
    for first, last in ranges_of(count):
        found = cover(count, (first, last))
        assert set(found) <= nodes
        assert [i for a, b in found for i in range(a, b + 1)] == list(range(first, last + 1))
        inside = {n for n in nodes if first <= n[0] and n[1] <= last}
        largest = {n for n in inside if not inside.intersection(ancestors(count, n))}
        assert set(found) == largest


def test_no_cover_is_larger_than_stated() -> None:
    for count in range(1, 66):
        longest = max(len(cover(count, each)) for each in ranges_of(count))
        assert longest <= largest_cover(count) <= max(1, 2 * math.ceil(math.log2(count)))


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, list[Range]]:
    """A number of shards, and nodes that cover them all, as ranges of any cut bring them."""
    count = draw(st.integers(1, 40))
    inner = draw(st.sets(st.integers(1, count - 1))) if count > 1 else set()
    edges = [0, *sorted(inner), count]
    nodes = [n for a, b in itertools.pairwise(edges) for n in cover(count, (a, b - 1))]
    return count, draw(st.permutations(nodes))


def sum_of(values: Sequence[NDArray[Any]], node: Range) -> NDArray[Any]:
    if node[0] == node[1]:
        return values[node[0]]
    left, right = children(node)
    total: NDArray[Any] = sum_of(values, left) + sum_of(values, right)
    return total


@settings(deadline=None)
@given(cuts())
def test_sums_of_any_cut_in_any_order_give_the_same_bits(case: tuple[int, list[Range]]) -> None:
    count, nodes = case
    values = summands(count)
    tree = TreeSum[NDArray[Any]](count)
    for node in nodes:
        assert tree.container(node) is None
        tree.put(node, sum_of(values, node))
        assert tree.container(node) is not None
    assert tree.complete
    assert tree.result().tobytes() == by_definition(values).tobytes()


@settings(deadline=None)
@given(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.permutations(nodes_of(n)))))
def test_a_node_replaces_what_is_held_below_it(case: tuple[int, list[Range]]) -> None:
    """Every delivered sum has a name, and the last one that replaced the others is the result."""
    count, nodes = case
    tree = TreeSum[Any](count)
    for node in nodes:
        below = {n for n in tree.nodes if node[0] <= n[0] and n[1] <= node[1]}
        held_above = any(n in tree.nodes for n in (node, *ancestors(count, node)))
        assert (tree.container(node) is not None) is held_above
        if not held_above:
            tree.put(node, np.array([node], object))
            assert not {n for n in below if n in tree.nodes and n != node}
        numbers = [i for a, b in tree.nodes for i in range(a, b + 1)]
        assert len(numbers) == len(set(numbers)), "no shard is in two nodes"
    assert tree.complete


def test_the_sums_of_what_is_here_are_those_of_its_cover() -> None:
    for count in range(1, 18):
        values = summands(count)
        for first, last in ranges_of(count):
            tree = TreeSum[NDArray[Any]](count)
            for index in range(first, last + 1):
                tree.put((index, index), values[index])
            expected = [sum_of(values, node).tobytes() for node in cover(count, (first, last))]
            assert [each.tobytes() for each in tree.sums()] == expected


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=70))
def test_losses_are_summed_in_the_same_tree(values: list[float]) -> None:
    assert sum_in_tree(values).hex() == tree_sum(values).hex()


def test_halves_are_the_root_s_two_or_the_one_sum() -> None:
    values = summands(5)
    tree = TreeSum[NDArray[Any]](5)
    tree.put((4, 4), values[4])
    tree.put((0, 3), sum_of(values, (0, 3)))
    assert [half.tobytes() for half in tree.halves()] == [
        sum_of(values, (0, 3)).tobytes(),
        values[4].tobytes(),
    ]
    tree.put((0, 4), values[0])
    assert [half.tobytes() for half in tree.halves()] == [values[0].tobytes()]
