"""What the page shows of a run: bounds, steps that are done again, charts, workers."""

import numpy as np
import pytest

from manychar.observability.dashboard import html
from manychar.observability.dashboard import view as module
from manychar.observability.dashboard.charts import loss_chart, speed_chart
from manychar.observability.dashboard.view import Sample, View
from manychar.observability.history import Point, speeds
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


def test_steps_that_are_done_again_are_forgotten() -> None:
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


def test_reports_in_a_burst_make_no_peak() -> None:
    reports = [point(0), point(100), point(101, seconds=10.001), point(200)]
    assert [round(speed) for _, speed in speeds(reports)] == [1000, 1000]


def test_the_time_left_is_known_only_where_there_is_an_end() -> None:
    view = view_at(100, 200)
    assert view.seconds_left() is None
    assert view.but(steps=300).seconds_left() == pytest.approx(10.0)
    assert view.but(steps=300, live=False).seconds_left() is None


def test_every_chart_has_its_sentence() -> None:
    view = View(source="run")
    assert "no step" in loss_chart(view).summary
    assert "not known" in speed_chart(view).summary
    view = view_at(0, 100).with_point(point(200), (100, 2.5)).but(best=100)
    assert "validation 2.500 at step 100, best at step 100" in loss_chart(view).summary
    assert speed_chart(view).summary.startswith("Characters a second: 1,000 now")


def test_the_table_of_workers() -> None:
    assert html.workers(View(source="run")) == "<p>No worker.</p>"
    rows = rows_of(snapshot_of(10.0, late=3.0), None)
    shown = html.workers(View(source="run", workers=rows))
    assert shown.count("<th scope") == len(COLUMNS) + 1
    assert '<tr><th scope="row">ann</th><td>here</td><td>working</td><td>1</td>' in shown
    assert "<td>3.0 s</td>" in shown


def test_no_line_is_told_by_its_colour_alone() -> None:
    lines = loss_chart(View(source="run").with_point(point(100), (100, 2.5))).options["series"]
    strokes = {(line["lineStyle"]["type"], line["lineStyle"]["width"]) for line in lines}
    assert len(strokes) == len(lines) == 3


def test_a_view_does_not_change_under_its_reader() -> None:
    view = view_at(1)
    changed = view.with_point(point(2), None).but(state="other")
    assert ([one.step for one in view.history.points], view.state) == ([1], "connecting")
    assert changed != view
