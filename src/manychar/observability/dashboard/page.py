"""The page, one for each browser: built once, then updated every second."""

import json
from collections.abc import Callable
from html import escape
from importlib.resources import files

from nicegui import ui

from manychar.observability.dashboard import html
from manychar.observability.dashboard.charts import loss_chart, loss_summary
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
                activity = _html("p").props("role=status")
                figures = _html("dl")
            with _section("Loss, nats a character"):
                summary = _html("p").props("aria-hidden=true")
                chart = ui.echart({}, renderer="svg", theme=_THEME).props("role=img")
            with _section("Workers") as section:  # scrolled by keyboard where it is too wide
                workers = _html("div").classes("table").props("tabindex=0 role=group")
                workers.props("aria-label=Statistics")
            with _section("Samples"):
                samples = _html("div").classes("samples")
            hidden_units = _HiddenUnits()
        ui.skip_link("Skip to the run", target=sections)

        def draw() -> None:
            view = current()
            figures.set_content(html.figures(view))  # they contain ages
            if drawn == [view]:
                return
            drawn[:] = [view]
            title.set_content(html.title(view))
            activity.set_content(html.activity(view))
            summary.set_content(escape(loss_summary(view)))
            chart.props["aria-label"] = loss_summary(view)  # its name for screen readers
            chart.options.clear()
            chart.options.update(loss_chart(view))
            chart.update()
            workers.set_content(html.workers(view))
            section.set_visibility(view.live or bool(view.workers))
            samples.set_content(html.samples(view.samples))
            hidden_units.draw(view)

        draw()
        ui.timer(EVERY, draw)


class _HiddenUnits:
    """The newest sample, coloured by a hidden unit that the reader picks."""

    def __init__(self) -> None:
        self._sample: Sample | None = None
        with _section("Hidden units"):
            _html("p", html.HIDDEN_UNITS)
            self._select = ui.select([], label="Hidden unit", on_change=self._colour)
            self._text = _html("p").classes("text coloured")

    def draw(self, view: View) -> None:
        """Show the newest sample, coloured by the hidden unit that was picked, else the first."""
        if not view.samples or view.samples[-1] is self._sample:
            return
        self._sample = view.samples[-1]
        hidden_units = list(range(self._sample.states.shape[1]))
        picked = self._select.value if self._select.value in hidden_units else 0
        self._select.set_options(hidden_units, value=picked)
        self._colour()

    def _colour(self) -> None:
        sample, hidden_unit = self._sample, self._select.value
        if sample is None or hidden_unit is None:
            return
        self._text.set_content(html.coloured(sample, hidden_unit))


def _html(tag: str, content: str = "") -> ui.html:
    return ui.html(content, tag=tag, sanitize=False)


def _section(title: str) -> ui.element:
    section = ui.element("section").props(f'aria-label="{title}"')
    with section:
        _html("h2", title)
    return section
