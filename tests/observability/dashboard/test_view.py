"""What the page shows of a run: bounds, steps that are done again, charts, workers."""

import dataclasses

import numpy as np
import pytest

from manychar.observability.dashboard import html
from manychar.observability.dashboard import view as module
from manychar.observability.dashboard.charts import loss_chart, loss_summary
from manychar.observability.dashboard.view import Sample, View
from manychar.observability.history import Point, recent_speed, seconds_left
from manychar.observability.status import COLUMNS, rows_of
from tests.observability.test_observer_client import snapshot_of


def point(step: int, *, seconds: float | None = None) -> Point:
    at = step / 10 if seconds is None else seconds
    return Point(step=step, seconds=at, characters=100 * step, loss=2.0, smooth_loss=3.0)


def sample(step: int) -> Sample:
    return Sample(step, "ab", np.zeros((2, 3), np.float32))


def view_at(*steps: int) -> View:
    view = View(source="run")
    for step in steps:
        view = view.with_point(point(step), None)
    return view


def test_however_long_a_run_the_whole_of_it_is_kept_within_bounds() -> None:
    view = View(source="run")
    for step in range(2_000):
        view = view.with_point(point(step), (step, 2.0)).with_sample(sample(step))
    history = view.history
    assert len(history.points) <= module.MOST_POINTS
    assert len(history.validation_losses) <= module.MOST_POINTS
    assert len(view.samples) <= module.MOST_SAMPLES
    assert (history.points[0].step, history.points[-1].step) == (0, 1_999)
    assert (view.samples[0].step, view.samples[-1].step) == (0, 1_999)


def test_steps_that_are_repeated_are_replaced() -> None:
    view = View(source="run")
    for step in (100, 200, 300):
        view = view.with_point(point(step), (step, 2.0)).with_sample(sample(step))
    view = view.with_point(point(200), None)
    assert [one.step for one in view.history.points] == [100, 200]
    assert [step for step, _ in view.history.validation_losses] == [100, 200]
    assert [one.step for one in view.samples] == [100, 200]


def test_another_run_begins_with_nothing() -> None:
    one = View(source="tcp://server").of_run("one", {}).with_point(point(5), None)
    assert one.of_run("one", {}) is one
    two = one.of_run("two", {"dtype": "float32"})
    assert (two.source, two.run, two.history.points) == ("tcp://server", "two", ())


def test_neither_a_burst_nor_a_wait_changes_the_speed() -> None:
    reports = [point(0), point(100), point(101, seconds=10.001), point(200)]
    assert recent_speed([*reports, point(300, seconds=99.0)]) == pytest.approx(1000, rel=0.02)
    assert recent_speed(reports[:1]) is None


def test_the_time_left_is_known_only_where_there_is_an_end() -> None:
    view = view_at(100, 200)
    assert seconds_left(view.history.points, 0) is None
    assert seconds_left(view.history.points, 300) == pytest.approx(10.0)
    view = dataclasses.replace(view, steps=300, workers=[["ann", "here", "working"]])
    assert "<dt>time left</dt><dd>10 s</dd>" in html.figures(view)
    assert "<dt>characters a second</dt><dd>1,000</dd>" in html.figures(view)
    assert "time left" not in html.figures(dataclasses.replace(view, live=False))
    for workers in ([], [["ann", "here", "silent"]]):
        shown = html.figures(dataclasses.replace(view, workers=workers))
        assert "time left" not in shown
        assert "characters a second" not in shown
    ended = dataclasses.replace(view, workers=[], live=False)
    assert "characters a second" in html.figures(ended)


def test_the_chart_has_its_sentence() -> None:
    assert "no step" in loss_summary(View(source="run"))
    view = view_at(0, 100).with_point(point(200), (100, 2.5))
    summary = loss_summary(dataclasses.replace(view, best=100))
    assert "validation 2.500 at step 100, best at step 100" in summary


def test_the_table_of_workers() -> None:
    assert html.workers(View(source="run")) == "<p>No worker.</p>"
    rows = rows_of(snapshot_of(10.0, late_seconds=3.0))
    shown = html.workers(View(source="run", workers=rows))
    assert shown.count("<th scope") == len(COLUMNS) + 1
    assert '<tr><th scope="row">ann</th><td>here</td><td>working</td><td>1</td>' in shown
    assert "<td>3.0 s</td>" in shown


def test_no_line_is_told_by_its_colour_alone() -> None:
    lines = loss_chart(View(source="run").with_point(point(100), (100, 2.5)))["series"]
    strokes = {(line["lineStyle"]["type"], line["lineStyle"]["width"]) for line in lines}
    assert len(strokes) == len(lines) == 3


def test_a_view_does_not_change_under_its_reader() -> None:
    view = view_at(1)
    changed = dataclasses.replace(view.with_point(point(2), None), activity="other")
    assert ([one.step for one in view.history.points], view.activity) == ([1], "connecting")
    assert changed != view
