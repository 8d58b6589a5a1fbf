"""What is known of a run: bounds, steps that are done again, how workers spend their time."""

from typing import Any

import numpy as np
import pytest

from manychar.observability.dashboard import html
from manychar.observability.dashboard import view as module
from manychar.observability.dashboard.charts import loss_chart, speed_chart
from manychar.observability.dashboard.view import ACTIVITIES, Sample, View, shares_of
from manychar.observability.history import Point, speeds
from manychar.protocol.messages import WorkerStats


def point(step: int, *, seconds: float | None = None) -> Point:
    at = step / 10 if seconds is None else seconds
    return Point(step=step, seconds=at, characters=100 * step, loss=2.0, smooth_loss=3.0)


def sample(step: int) -> Sample:
    return Sample(step, "ab", np.zeros((2, 3), np.float32))


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


def test_an_interval_is_the_difference_of_two_snapshots() -> None:
    view = View(source="run").with_workers([worker()])
    later = [worker(present=12.0, computing=7.0, waiting=1.5), worker("right")]
    assert view.with_workers(later).intervals == ({"left": (0.5, 0.25, 0.25, 0.0)},)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"present": 1.0}, ()),
        ({"present": 12.0, "state": "silent"}, (0, 0, 0, 1)),
        ({"present": 11.0, "computing": 9.0, "waiting": 3.0}, (1, 0, 0, 0)),
        ({"present": 11.0, "computing": 2.0, "waiting": 1.0}, (0, 1, 0, 0)),
    ],
    ids=["it joined anew", "silent", "more than there was time for", "less than before"],
)
def test_shares_are_fractions_whatever_a_worker_reports(
    values: dict[str, Any], expected: tuple[float, ...]
) -> None:
    assert shares_of(worker(), worker(**values)) == expected


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


def test_a_worker_has_its_timeline_and_its_figures() -> None:
    assert html.workers(View(source="run")) == "<p>No worker.</p>"
    view = View(source="run").with_workers([worker()])
    view = view.with_workers([worker(present=12.0, computing=6.0, waiting=3.0, late=3.0)])
    shown = html.workers(view)
    assert 'aria-label="computing 50%, exchanging 25%, waiting 25%"' in shown
    assert "<td>50%</td><td>25%</td><td>25%</td><td>3.0 s</td>" in shown
    assert '<path class="waiting" d="M59 0h1v100h-1z"/>' in shown
    assert all(f'<path class="{activity}"' in shown for activity in ACTIVITIES)


def test_no_line_is_told_by_its_colour_alone() -> None:
    lines = loss_chart(View(source="run").with_point(point(100), (100, 2.5))).options["series"]
    strokes = {(line["lineStyle"]["type"], line["lineStyle"]["width"]) for line in lines}
    assert len(strokes) == len(lines) == 3


def test_a_view_does_not_change_under_its_reader() -> None:
    view = view_at(1)
    changed = view.with_point(point(2), None).but(state="other")
    assert ([one.step for one in view.history.points], view.state) == ([1], "connecting")
    assert changed != view
