"""The parts of the page that are text, as HTML.

Whatever comes from a run (a text, a name, a notice) is escaped here; nothing of it is markup.
"""

import time
from collections.abc import Sequence
from html import escape

from manychar.observability.dashboard.view import Sample, View
from manychar.observability.history import recent_speed, seconds_left
from manychar.observability.status import COLUMNS
from manychar.observability.text_format import duration, printable, step_of

HIDDEN_UNITS = """The newest sample, coloured by the value of one hidden unit after each character:
<span class="low" style="--a:1">−1</span> <span class="low" style="--a:.5">−0.5</span> 0
<span class="high" style="--a:.5">0.5</span> <span class="high" style="--a:1">1</span>, underlined
below zero."""


def figures(view: View) -> str:
    """Return the run's figures: a list of terms and values."""
    pairs = ((escape(name), escape(value)) for name, value in _figures(view).items())
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)


def _figures(view: View) -> dict[str, str]:
    points, found = view.history.points, {"step": "–"}
    if points:
        last = points[-1]
        found["step"] = step_of(last.step, view.steps)
        found["loss"] = f"{last.loss:#.4g} nats a character"
    if view.history.validation_losses:
        step, nats = view.history.validation_losses[-1]
        found["validation loss"] = f"{nats:#.4g} at step {step:,}"
    if points:
        found["smooth loss"] = f"{points[-1].smooth_loss:#.4g}"
    if view.best is not None:
        found["best checkpoint"] = f"step {view.best:,}"
    works = not view.live or any(state == "working" for _, _, state, *_ in view.workers)
    if works and (speed := recent_speed(points)) is not None:
        found["characters a second"] = f"{speed:,.0f}"
    if works and view.live and (left := seconds_left(points, view.steps)) is not None:
        found["time left"] = duration(left)
    if points:
        found["trained for"] = duration(points[-1].seconds)
    if view.live and view.workers:
        found["workers"] = f"{view.without_relays}"
    if view.checkpoint is not None:
        step, at = view.checkpoint
        age = f", {duration(max(time.time() - at, 0))} ago" if view.live else ""
        found["last checkpoint"] = f"step {step:,}{age}"
    counts = {name: f"{n:,}" for name, n in sorted(view.counts.items()) if n}
    return {**found, **counts}


def title(view: View) -> str:
    """Return what the page shows, and what defines the run."""
    facts = " · ".join(f"{name} {value}" for name, value in view.facts.items())
    return f"<strong>{escape(view.source)}</strong> run {escape(view.run)}<br>{escape(facts)}"


def activity(view: View) -> str:
    """Return what the run does, in a few words."""
    kind = "live" if view.live else "ended"
    return f'<span class="{kind}">{kind}</span> {escape(view.activity)}'


def workers(view: View) -> str:
    """Return the table of the workers' statistics."""
    if not view.workers:
        return "<p>No worker.</p>"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in COLUMNS)
    rows = (
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in view.workers
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def samples(found: Sequence[Sample]) -> str:
    """Return what the weights wrote, the newest first."""
    return "".join(
        f"<article><h3>step {sample.step:,}</h3>"
        f'<p class="text">{escape(printable(sample.text))}</p></article>'
        for sample in reversed(found)
    )


def coloured(sample: Sample, hidden_unit: int) -> str:
    """Return a text with each character on a colour that shows a hidden unit's value after it.

    Characters below zero are underlined, too.
    """
    spans = []
    values = sample.states[:, hidden_unit].tolist()
    for character, value in zip(sample.text, values, strict=True):
        sign = "high" if value >= 0 else "low"
        shown = {"\n": "↵\n", "\t": "⇥"}.get(character) or escape(printable(character))
        style = f'style="--a:{abs(value):.2f}" title="{value:+.2f}"'
        spans.append(f'<span class="{sign}" {style}>{shown}</span>')
    return "".join(spans)
