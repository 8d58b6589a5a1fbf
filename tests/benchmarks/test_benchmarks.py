"""The sides that need neither PyTorch nor Ray go for a tiny round; tables and ratios."""

import math
from pathlib import Path

import pytest

from tests.benchmarks.asking import Side, Together
from tests.benchmarks.plan import Plan
from tests.benchmarks.rounds import Figures, interleave
from tests.benchmarks.sides.held_out import crossing
from tests.benchmarks.tables import Comparison, comparisons

TEXT = "to be, or not to be, that is the question: " * 200


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    return Plan(text=text, scratch=tmp_path, rounds=1, seconds=0.05)


def test_a_side_goes_as_often_as_it_is_told(plan: Plan) -> None:
    with Side("single", plan.task(hidden=16)) as ours, Side("plain", plan.task(hidden=16)) as plain:
        ours.until_ready()
        plain.until_ready()
        found = interleave({"ours": ours, "plain": plain}, 2)
    assert [len(figures.values) for figures in found.values()] == [2, 2]
    assert min(found["ours"].values + found["plain"].values) > 0


def test_the_bytes_alone_go_to_and_fro(plan: Plan) -> None:
    with Side("bare", plan.task(hidden=16)) as bare:
        bare.until_ready()
        assert bare.measure(0) > 0


def test_two_that_go_together_add_up(plan: Plan) -> None:
    with Together([Side("single", plan.task(hidden=16)) for _ in range(2)]) as two:
        two.until_ready()
        assert two.measure(0) > 0


def test_a_ratio_is_that_of_the_median_round() -> None:
    row = Comparison(
        what="this",
        ours=Figures((1.0, 3.0, 2.0)),
        against="that",
        theirs=Figures((6.0, 4.0, 5.0)),
        less_is_better=True,
    )
    assert math.isclose(row.ratio, 2.5)
    assert comparisons([row]).endswith(
        "| this | 2.00 (1.00 … 3.00) | that | 5.00 (4.00 … 6.00) | 2.5x |\n"
    )


def test_a_crossing_lies_between_its_two_points() -> None:
    assert math.isclose(crossing((1.0, 2.4), (2.0, 2.0), 2.2), 1.5)
