"""The page, one for each browser that looks: built once, then told every second what is new."""

from collections.abc import Callable
from importlib.resources import files

from nicegui import ui

from manychar.observability.dashboard import html
from manychar.observability.dashboard.charts import Chart, loss_chart, pace_chart, timeline_chart
from manychar.observability.dashboard.hidden_units import followings
from manychar.observability.dashboard.run_history import History, Moment, View

EVERY = 1.0
SAMPLES_OPEN = 4
NEWEST = -1


def register(history: History) -> None:
    """Have the page at / show this history."""
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")

    @ui.page("/", title=f"manychar · {history.source}")
    def page() -> None:
        ui.add_head_html(f"<style>{style}</style>")
        Page(history)


class Page:
    """What one browser sees."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._version = -1
        self._paused = False
        with ui.element("header"):
            with ui.element("div"):
                ui.html("manychar", tag="h1", sanitize=False)
                self._title = ui.html("", tag="p", sanitize=False)
            self._pause = ui.button("Pause", on_click=self._turn_pause).props("outline no-caps")
        with ui.element("div").classes("sections") as sections:
            with _section("Standing"):
                self._state = ui.html("", tag="p", sanitize=False).props("role=status")
                self._facts = ui.html("", tag="dl", sanitize=False)
            self._loss = Drawing("Loss, nats a character", half=True)
            self._pace = Drawing("Characters a second", half=True)
            self._timeline = Drawing("Workers", table_open=True)
            with _section("Samples"):
                self._samples = ui.html("", sanitize=False).classes("samples")
                with ui.element("details") as self._earlier:
                    ui.html("Earlier samples", tag="summary", sanitize=False)
                    self._earlier_samples = ui.html("", sanitize=False).classes("samples")
            self._units = Units()
            with _section("Messages"):
                self._notices = ui.html("", sanitize=False).classes("notices")
        ui.skip_link("Skip to the charts", target=sections)
        self._draw()
        ui.timer(EVERY, self._draw)

    def _turn_pause(self) -> None:
        self._paused = not self._paused
        self._pause.set_text("Go on" if self._paused else "Pause")
        self._draw()

    def _draw(self) -> None:
        if self._paused:
            return
        view = self._history.view()
        if view.version == self._version and not view.live:
            return
        self._facts.set_content(html.facts(view))
        self._state.set_content(html.state(view))
        if view.version == self._version:
            return
        self._version = view.version
        self._title.set_content(html.title(view, self._history.source))
        self._loss.draw(loss_chart(view))
        self._pace.draw(pace_chart(view))
        self._timeline.draw(timeline_chart(view), visible=view.live or bool(view.intervals))
        self._draw_samples(view)
        self._units.draw(view)
        self._notices.set_content(html.notices(view.notices, view.counts))

    def _draw_samples(self, view: View) -> None:
        newest, earlier = view.moments[-SAMPLES_OPEN:], view.moments[:-SAMPLES_OPEN]
        self._samples.set_content(html.samples(newest))
        self._earlier.set_visibility(bool(earlier))
        self._earlier_samples.set_content(html.samples(earlier))


class Drawing:
    """A chart with its words, and its numbers as a table that is filled while it is open."""

    def __init__(self, title: str, *, half: bool = False, table_open: bool = False) -> None:
        self._title = title
        self._open = table_open
        self._chart: Chart | None = None
        with _section(title) as self._section:
            if half:
                self._section.classes("half")
            self._words = ui.html("", tag="p", sanitize=False).props("aria-hidden=true")
            self._drawing = ui.echart({}, renderer="svg").props("role=img")
            if table_open:
                self._table = _table()
                return
            with _details("As a table", self._opened):
                self._table = _table()

    def draw(self, chart: Chart, *, visible: bool = True) -> None:
        """Show a chart in place of the one before, or nothing."""
        self._section.set_visibility(visible)
        if self._chart is not None and chart == self._chart:
            return
        self._chart = chart
        self._words.set_content(html.words(chart.summary))
        self._drawing.props["aria-label"] = chart.summary
        self._drawing.style(f"height: {chart.height}px")
        self._drawing.options.clear()
        self._drawing.options.update(chart.options)
        self._drawing.update()
        self._fill()

    def _opened(self, is_open: bool) -> None:  # noqa: FBT001 - an event's value
        self._open = is_open
        self._fill()

    def _fill(self) -> None:
        if self._open and self._chart is not None:
            self._table.set_content(html.table(self._chart, self._title))


class Units:
    """The hidden units over a sample: pick one, see the text coloured by it."""

    def __init__(self) -> None:
        self._moments: dict[int, Moment] = {}
        self._drawn: tuple[Moment, int] | None = None
        self._table_open = False
        self._chosen_by_hand = False
        with _section("Hidden units"):
            ui.html(
                "A sample as one hidden unit reads it: how the unit stands after each character,"
                " from −1 to 1. Characters below zero are underlined.",
                tag="p",
                sanitize=False,
            )
            with ui.element("div").classes("controls"):
                self._step = ui.select(
                    {NEWEST: "the newest"},
                    value=NEWEST,
                    label="Sample of step",
                    on_change=self._show,
                )
                self._unit = ui.number(
                    "Hidden unit", value=0, min=0, step=1, on_change=self._picked
                )
                self._following = ui.select(
                    {}, label="Units that follow something", on_change=self._follow
                )
            self._legend = ui.html(html.LEGEND, tag="p", sanitize=False).props("aria-hidden=true")
            self._text = (
                ui.html("", tag="p", sanitize=False).classes("text coloured").props("role=img")
            )
            self._words = ui.html("", tag="p", sanitize=False).classes("words")
            with _details("As a table", self._opened):
                self._table = _table()

    def draw(self, view: View) -> None:
        """Take what there is to choose from by now."""
        moments = {moment.step: moment for moment in view.moments}
        if moments == self._moments:
            return
        self._moments = moments
        names = {step: f"{step:,}" for step in sorted(moments, reverse=True)}
        value = self._step.value if self._step.value in names else NEWEST
        self._step.set_options({NEWEST: "the newest", **names}, value=value)
        self._show()

    @property
    def _moment(self) -> Moment | None:
        step = max(self._moments, default=0) if self._step.value == NEWEST else self._step.value
        return self._moments.get(step)

    def _show(self) -> None:
        if (moment := self._moment) is None:
            return
        count = moment.states.shape[1]
        self._unit.props["label"] = f"Hidden unit, 0 to {count - 1}"
        self._unit.max = count - 1
        found = followings(moment)
        self._following.set_options(
            {
                one.unit: f"{one.what}: unit {one.unit} ({html.signed(one.correlation)})"
                for one in found
            }
        )
        if found and not self._chosen_by_hand:
            self._unit.set_value(found[0].unit)
        self._colour(moment)

    def _colour(self, moment: Moment) -> None:
        value = self._unit.value
        unit = min(max(int(value or 0), 0), moment.states.shape[1] - 1)
        if self._drawn == (moment, unit):
            return
        self._drawn = moment, unit
        words = html.in_words(moment, unit)
        self._text.set_content(html.coloured(moment, unit))
        self._text.props["aria-label"] = f"The sample, coloured by unit {unit}"
        self._words.set_content(html.words(words))
        self._fill()

    def _picked(self) -> None:
        if (moment := self._moment) is not None:
            self._colour(moment)

    def _follow(self) -> None:
        if self._following.value is not None:
            self._chosen_by_hand = True
            self._unit.set_value(self._following.value)

    def _opened(self, is_open: bool) -> None:  # noqa: FBT001 - an event's value
        self._table_open = is_open
        self._fill()

    def _fill(self) -> None:
        if self._table_open and self._drawn is not None:
            self._table.set_content(html.activation_table(*self._drawn))


def _section(title: str) -> ui.element:
    section = ui.element("section").props(f'aria-label="{title}"')
    with section:
        ui.html(title, tag="h2", sanitize=False)
    return section


def _table() -> ui.html:
    """Return a place for a table: one that is too wide is scrolled by keyboard, too."""
    place = ui.html("", sanitize=False).classes("table")
    return place.props('tabindex=0 role=group aria-label="Table"')


def _details(summary: str, opened: Callable[[bool], None]) -> ui.element:
    details = ui.element("details")
    details.on("toggle", lambda event: opened(bool(event.args)), js_handler=_IS_OPEN)
    with details:
        ui.html(summary, tag="summary", sanitize=False)
    return details


_IS_OPEN = "(event) => emit(event.target.open)"
