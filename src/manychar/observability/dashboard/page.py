"""The page, one for each browser: built once, then updated every second."""

import json
from collections.abc import Callable
from html import escape
from importlib.resources import files

from nicegui import ui

from manychar.observability.dashboard import html
from manychar.observability.dashboard.charts import Chart, loss_chart, speed_chart
from manychar.observability.dashboard.hidden_units import followings, in_words
from manychar.observability.dashboard.view import Sample, View

EVERY = 1.0
_THEME = json.loads(files(__package__).joinpath("chart_theme.json").read_text(encoding="utf-8"))


def register(current: Callable[[], View]) -> None:
    """Serve the page at /; `current` returns the newest view."""
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")

    @ui.page("/", title=f"manychar · {current().source}")
    def page() -> None:
        ui.add_head_html(f"<style>{style}</style>")
        drawn: list[View] = []
        with ui.element("header"):
            _html("h1", "manychar")
            title = _html("p")
        with ui.element("div").classes("sections") as sections:
            with _section("Status"):
                state = _html("p").props("role=status")
                figures = _html("dl")
            drawings = [_Drawing("Loss, nats a character"), _Drawing("Characters a second")]
            with _section("Workers") as section:  # scrolled by keyboard where it is too wide
                workers = _html("div").classes("table").props("tabindex=0 role=group")
                workers.props("aria-label=Statistics")
            with _section("Samples"):
                samples = _html("div").classes("samples")
            units = _HiddenUnits()
        ui.skip_link("Skip to the charts", target=sections)

        def draw() -> None:
            view = current()
            if view.live or drawn != [view]:  # the figures tell the time, too
                figures.set_content(html.figures(view))
            if drawn == [view]:
                return
            drawn[:] = [view]
            title.set_content(html.title(view))
            state.set_content(html.state(view))
            for drawing, chart in zip(drawings, (loss_chart(view), speed_chart(view)), strict=True):
                drawing.draw(chart)
            workers.set_content(html.workers(view))
            section.set_visibility(view.live or bool(view.workers))
            samples.set_content(html.samples(view.samples))
            units.draw(view)

        draw()
        ui.timer(EVERY, draw)


class _Drawing:
    """A chart and its sentence, which is its name for screen readers."""

    def __init__(self, title: str) -> None:
        self._chart: Chart | None = None
        with _section(title).classes("half"):
            self._words = _html("p").props("aria-hidden=true")
            self._drawing = ui.echart({}, renderer="svg", theme=_THEME).props("role=img")

    def draw(self, chart: Chart) -> None:
        if chart == self._chart:
            return
        self._chart = chart
        self._words.set_content(escape(chart.summary))
        self._drawing.props["aria-label"] = chart.summary
        self._drawing.options.clear()
        self._drawing.options.update(chart.options)
        self._drawing.update()


class _HiddenUnits:
    """The newest sample, coloured by a hidden unit that the reader picks."""

    def __init__(self) -> None:
        self._sample: Sample | None = None
        with _section("Hidden units"):
            _html("p", html.HIDDEN_UNITS)
            self._unit = ui.select({}, label="Hidden unit", on_change=self._colour)
            self._text = _html("p").classes("text coloured").props("role=img")
            self._words = _html("p").classes("words")

    def draw(self, view: View) -> None:
        """Show the newest sample, by the unit that was picked, else by the most telling one."""
        if not view.samples or view.samples[-1] is self._sample:
            return
        self._sample = view.samples[-1]
        options = followings(self._sample)
        for unit in range(self._sample.states.shape[1]):
            options.setdefault(unit, f"{unit}")
        value = self._unit.value if self._unit.value in options else next(iter(options))
        self._unit.set_options(options, value=value)
        self._colour()

    def _colour(self) -> None:
        if (sample := self._sample) is None or (unit := self._unit.value) is None:
            return
        self._text.set_content(html.coloured(sample, unit))
        self._text.props["aria-label"] = f"The sample, coloured by unit {unit}"
        self._words.set_content(escape(in_words(sample, unit)))


def _html(tag: str, content: str = "") -> ui.html:
    return ui.html(content, tag=tag, sanitize=False)


def _section(title: str) -> ui.element:
    section = ui.element("section").props(f'aria-label="{title}"')
    with section:
        _html("h2", title)
    return section
