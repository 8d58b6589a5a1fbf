"""The parts of the page that are text: facts, tables, samples, coloured characters, as HTML.

Whatever comes from a run (a text, a name, a notice) is escaped here; nothing of it is markup.
"""

import math
import time
from collections.abc import Mapping, Sequence
from html import escape

from manychar.observability.dashboard.charts import Chart, Rows
from manychar.observability.dashboard.hidden_units import around, extremes, visible
from manychar.observability.dashboard.run_history import Moment, View, bits, pace_of, seconds_left

RECENT = 5
LEGEND = (
    '<span class="low" style="--a:1">−1</span><span class="low" style="--a:.5">−0.5</span>'
    '<span>0</span><span class="high" style="--a:.5">0.5</span>'
    '<span class="high" style="--a:1">1</span>'
)


def facts(view: View) -> str:
    """Return how the run stands: a list of terms and values."""
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in _standing(view).items()
    )


def _standing(view: View) -> dict[str, str]:
    found = {"step": "–"}
    if view.points:
        last = view.points[-1]
        total = f" of {view.steps:,}" if view.steps else ""
        found["step"] = f"{last.step:,}{total}"
        found["smooth loss"] = f"{last.smooth:.3f} nats, {bits(last.smooth):.3f} bits"
    if view.validated:
        newest = view.validated[-1]
        found["validation"] = f"{newest.nats:.3f} nats at step {newest.step:,}"
    if view.best is not None:
        found["best checkpoint"] = f"step {view.best:,}"
    if pace := pace_of(view.points):
        speeds = [speed for _, speed in pace[-RECENT:]]
        found["characters a second"] = f"{sum(speeds) / len(speeds):,.0f}"
    if (left := seconds_left(view)) is not None:
        found["time left"] = clock(left)
    if view.points:
        found["trained for"] = clock(view.points[-1].seconds)
    if view.live and view.workers:
        found["workers"] = f"{len(view.workers)}"
    if view.checkpoint is not None:
        step, at = view.checkpoint
        age = f", {clock(max(time.time() - at, 0))} ago" if view.live else ""
        found["last checkpoint"] = f"step {step:,}{age}"
    return found


def words(text: str) -> str:
    """Return plain words as HTML."""
    return escape(text)


def title(view: View, source: str) -> str:
    """Return what is watched, and what defines it."""
    defined = " · ".join(f"{name} {value}" for name, value in view.facts.items())
    return f"<strong>{escape(source)}</strong> run {escape(view.run)}<br>{escape(defined)}"


def state(view: View) -> str:
    """Return how the run is, in a few words."""
    kind = "live" if view.live else "over"
    return f'<span class="{kind}">{kind}</span> {escape(view.state)}'


def table(chart: Chart, caption: str) -> str:
    """Return a chart's numbers as a table."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in chart.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in chart.rows
    )
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def samples(moments: Sequence[Moment]) -> str:
    """Return what the weights wrote, the newest first."""
    return "".join(
        f"<article><h3>step {moment.step:,}</h3>"
        f'<p class="text">{escape(readable(moment.text))}</p></article>'
        for moment in reversed(moments)
    )


def coloured(moment: Moment, unit: int) -> str:
    """Return a text with each character on a colour that says how a unit stands after it.

    Below zero a character is underlined, too.
    """
    spans = []
    for character, value in zip(moment.text, moment.states[:, unit].tolist(), strict=True):
        sign = "high" if value >= 0 else "low"
        shown = "↵\n" if character == "\n" else escape(visible(character))
        style = f"--a:{abs(value):.2f}"
        spans.append(f'<span class="{sign}" style="{style}" title="{signed(value)}">{shown}</span>')
    return "".join(spans)


def in_words(moment: Moment, unit: int) -> str:
    """Return in a sentence what a unit does over a text."""
    low, high = extremes(moment, unit)
    values = moment.states[:, unit]
    return (
        f"Unit {unit} over {len(moment.text)} characters of step {moment.step:,}: mean"
        f" {signed(values.mean())}, above zero after {float((values >= 0).mean()):.0%} of them;"
        f" highest ({signed(values[high])}) after “{around(moment.text, high)}”, lowest"
        f" ({signed(values[low])}) after “{around(moment.text, low)}”."
    )


def activation_table(moment: Moment, unit: int) -> str:
    """Return a unit's values as a table: position, character, activation."""
    values = moment.states[:, unit].tolist()
    rows: Rows = [
        (f"{place:,}", visible(character) if character != " " else "blank", signed(value))
        for place, (character, value) in enumerate(zip(moment.text, values, strict=True), 1)
    ]
    head = ("position", "character", "activation")
    return table(Chart({}, "", head, rows), f"Unit {unit} after each character")


def notices(lines: Sequence[str], counts: Mapping[str, int]) -> str:
    """Return what was said, the newest first, and what was dropped."""
    dropped = {name: count for name, count in sorted(counts.items()) if count}
    told = "".join(f"<li>{escape(line)}</li>" for line in reversed(lines))
    counted = ", ".join(f"{escape(name)}: {count:,}" for name, count in dropped.items())
    told = told or "<li>Nothing has been said.</li>"
    return f"<p>Dropped: {counted or 'nothing'}.</p><ul>{told}</ul>"


def readable(text: str) -> str:
    """Return a text without control characters."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def signed(value: float) -> str:
    """Return an activation with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def clock(seconds: float) -> str:
    """Return seconds as minutes or hours; '–' for what is no number."""
    if not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
