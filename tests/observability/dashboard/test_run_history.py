"""What is known of a run: bounds, steps that are done again, how workers spend their time."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from manychar.observability.dashboard import run_history as module
from manychar.observability.dashboard.charts import DOINGS, loss_chart, pace_chart, timeline_chart
from manychar.observability.dashboard.run_history import (
    History,
    Judgement,
    Moment,
    Point,
    Share,
    pace_of,
    seconds_left,
    share_of,
)
from manychar.protocol.messages import WorkerStats


def point(step: int, *, seconds: float | None = None) -> Point:
    at = step / 10 if seconds is None else seconds
    return Point(step=step, seconds=at, characters=100 * step, nats=2.0, smooth=3.0)


def moment(step: int) -> Moment:
    return Moment(step, "ab", np.zeros((2, 3), np.float32))


def worker(name: str = "left", **values: Any) -> WorkerStats:
    known = WorkerStats(
        name=name,
        host="here",
        state="working",
        leases=2,
        units=5,
        dropped=0,
        present=10.0,
        computing=6.0,
        waiting=1.0,
        late=0.0,
    )
    return known._replace(**values)


def test_however_long_a_run_the_whole_of_it_is_kept_within_bounds() -> None:
    history = History("run")
    for step in range(5_000):
        history.point(point(step))
        history.moment(moment(step))
    view = history.view()
    assert len(view.points) <= module.MOST_POINTS
    assert len(view.moments) <= module.MOST_MOMENTS
    for kept in (view.points, view.moments):
        assert (kept[0].step, kept[-1].step) == (0, 4_999)
    history.course([point(step) for step in range(5_000)], [])
    assert len(history.view().points) <= module.MOST_POINTS


def test_steps_that_are_done_again_are_forgotten() -> None:
    history = History("run")
    for step in (100, 200, 300):
        history.point(point(step))
        history.moment(moment(step))
        history.judgement(Judgement(step, 2.0))
    history.point(point(200))
    view = history.view()
    for kept in (view.points, view.moments, view.validated):
        assert [one.step for one in kept] == [100, 200]


def test_another_run_begins_with_nothing_but_the_notices() -> None:
    history = History("tcp://server")
    history.begin("one", {})
    history.point(point(5))
    history.notice("heard")
    before = history.view().version
    history.begin("two", {"dtype": "float32"})
    view = history.view()
    assert (view.points, view.notices, view.run) == ((), ("heard",), "two")
    assert view.version > before


def test_an_interval_is_the_difference_of_two_rosters() -> None:
    history = History("run")
    history.roster([worker()], 50.0)
    history.roster([worker(present=12.0, computing=7.0, waiting=1.5), worker("right")], 52.0)
    (interval,) = history.view().intervals
    assert (interval.seconds, list(interval.shares)) == (2.0, ["left"])
    assert interval.shares["left"] == Share(computing=0.5, exchanging=0.25, waiting=0.25)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"present": 1.0}, None),
        ({"present": 12.0, "state": "silent"}, Share(0, 0, 0, 1)),
        ({"present": 11.0, "computing": 9.0, "waiting": 3.0}, Share(1, 0, 0)),
        ({"present": 11.0, "computing": 2.0, "waiting": 1.0}, Share(0, 1, 0)),
    ],
    ids=["it has come anew", "silent", "more than there was time for", "less than before"],
)
def test_shares_are_fractions_whatever_a_worker_says(
    values: dict[str, Any], expected: Share | None
) -> None:
    assert share_of(worker(), worker(**values)) == expected


def test_reports_in_a_heap_make_no_peak() -> None:
    reports = [point(0), point(100), point(101, seconds=10.001), point(200)]
    assert [round(pace) for _, pace in pace_of(reports)] == [1000, 1000]


def test_what_is_left_is_known_only_where_there_is_an_end() -> None:
    history = History("run")
    history.point(point(100))
    history.point(point(200))
    assert seconds_left(history.view()) is None
    history.know(steps=300)
    assert seconds_left(history.view()) == pytest.approx(10.0)
    history.know(live=False)
    assert seconds_left(history.view()) is None


def test_every_chart_is_in_words_and_numbers_too() -> None:
    history = History("run")
    assert "no step" in loss_chart(history.view()).summary
    assert "not known" in pace_chart(history.view()).summary
    assert "none" in timeline_chart(history.view()).summary
    for step in (0, 100, 200):
        history.point(point(step))
    history.judgement(Judgement(100, 2.5))
    history.know(best=100)
    history.roster([worker()], 50.0)
    history.roster([worker(present=12.0, computing=7.0, waiting=1.5, late=3.0)], 52.0)
    view = history.view()
    loss, pace, timeline = loss_chart(view), pace_chart(view), timeline_chart(view)
    assert "validation 2.500 at step 100, best at step 100" in loss.summary
    assert [row[-1] for row in loss.rows] == ["–", "2.500", "–"]
    assert pace.summary.startswith("Characters a second: 1,000 now")
    assert "left 50%" in timeline.summary
    assert "the step waits for left" in timeline.summary
    assert timeline.rows[0][4:8] == ("50%", "25%", "25%", "3.0 s")
    for chart in (loss, pace, timeline):
        assert all(len(row) == len(chart.head) for row in chart.rows)


def test_no_bar_or_line_is_told_by_its_colour_alone() -> None:
    history = History("run")
    history.point(point(100))
    history.judgement(Judgement(100, 2.5))
    history.roster([worker()], 50.0)
    bars = timeline_chart(history.view()).options["series"]
    patterns = {str(bar["itemStyle"]["decal"]) for bar in bars}
    assert len(patterns) == len(DOINGS)
    lines = loss_chart(history.view()).options["series"]
    strokes = {(line["lineStyle"]["type"], line["lineStyle"]["width"]) for line in lines}
    assert len(strokes) == len(lines) == 3


def test_a_view_does_not_change_under_its_reader() -> None:
    history = History("run")
    history.point(point(1))
    view = history.view()
    before = dataclasses.astuple(view)
    history.point(point(2))
    history.know(state="other")
    assert dataclasses.astuple(view) == before
