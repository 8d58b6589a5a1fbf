"""The parts of the page that are text, as HTML.

Whatever comes from a run (a text, a name, a notice) is escaped here; nothing of it is markup.
"""

import time
from collections.abc import Sequence
from html import escape

from manychar.numerics.loss_units import bits_of
from manychar.observability.dashboard.hidden_units import signed
from manychar.observability.dashboard.view import ACTIVITIES, MOST_INTERVALS, Sample, View
from manychar.observability.history import speeds
from manychar.processes.text_format import duration, printable
from manychar.protocol.messages import WorkerStats

RECENT = 5
LATE = 0.5
"""Seconds from which on the page says that the step waits for a worker."""
HIDDEN_UNITS = """The newest sample, coloured by the value of one hidden unit after each character:
<span class="low" style="--a:1">−1</span> <span class="low" style="--a:.5">−0.5</span> 0
<span class="high" style="--a:.5">0.5</span> <span class="high" style="--a:1">1</span>, underlined
below zero. The units that follow a feature of the text come first."""


def figures(view: View) -> str:
    """Return the run's figures: a list of terms and values."""
    pairs = ((escape(name), escape(value)) for name, value in _figures(view).items())
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)


def _figures(view: View) -> dict[str, str]:
    points, found = view.history.points, {"step": "–"}
    if points:
        last = points[-1]
        found["step"] = f"{last.step:,}" + (f" of {view.steps:,}" if view.steps else "")
        found["smooth loss"] = f"{last.smooth_loss:.3f} nats, {bits_of(last.smooth_loss):.3f} bits"
    if view.history.validation_losses:
        step, nats = view.history.validation_losses[-1]
        found["validation loss"] = f"{nats:.3f} nats at step {step:,}"
    if view.best is not None:
        found["best checkpoint"] = f"step {view.best:,}"
    if recent := [speed for _, speed in speeds(points)[-RECENT:]]:
        found["characters a second"] = f"{sum(recent) / len(recent):,.0f}"
    if (left := view.seconds_left()) is not None:
        found["time left"] = duration(left)
    if points:
        found["trained for"] = duration(points[-1].seconds)
    if view.live and view.workers:
        found["workers"] = f"{len(view.workers)}"
    if view.checkpoint is not None:
        step, at = view.checkpoint
        age = f", {duration(max(time.time() - at, 0))} ago" if view.live else ""
        found["last checkpoint"] = f"step {step:,}{age}"
    counts = {name: f"{n:,}" for name, n in sorted(view.counts.items()) if n and ":" not in name}
    return {**found, **counts}


def title(view: View) -> str:
    """Return what the page shows, and what defines the run."""
    facts = " · ".join(f"{name} {value}" for name, value in view.facts.items())
    return f"<strong>{escape(view.source)}</strong> run {escape(view.run)}<br>{escape(facts)}"


def state(view: View) -> str:
    """Return what the run does, in a few words."""
    kind = "live" if view.live else "ended"
    return f'<span class="{kind}">{kind}</span> {escape(view.state)}'


def workers(view: View) -> str:
    """Return the workers' statistics, each with a picture of its last minute."""
    if not view.workers:
        return "<p>No worker.</p>"
    figures = ("late", "shards", "gradients", "dropped", "state", "host")
    head = ("worker", "last minute", *ACTIVITIES[:3], *figures)
    rows = "".join(_worker(view, worker) for worker in view.workers)
    cells = "".join(f'<th scope="col">{name}</th>' for name in head)
    colours = " ".join(f'<span class="{name}">{name}</span>' for name in ACTIVITIES)
    return (
        f'<p class="colours">{colours}</p>'
        f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _worker(view: View, worker: WorkerStats) -> str:
    present = max(worker.present, 1e-9)
    seconds = (worker.computing, worker.exchanging, worker.waiting)
    shares = [f"{each / present:.0%}" for each in seconds]
    words = ", ".join(f"{name} {share}" for name, share in zip(ACTIVITIES, shares, strict=False))
    late = f"{worker.late:.1f} s" if worker.late >= LATE else "–"
    counts = (worker.leases, worker.units, worker.dropped)
    cells = (*shares, late, *(f"{count:,}" for count in counts), worker.state, worker.host)
    return (
        f'<tr><th scope="row">{escape(worker.name)}</th><td>'
        f'<svg role="img" aria-label="{words}" viewBox="0 0 {MOST_INTERVALS} 100"'
        f' preserveAspectRatio="none">{_timeline(view, worker.name)}</svg></td>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
    )


def _timeline(view: View, name: str) -> str:
    """Return a path for each activity: a bar an interval, stacked, the newest at the right."""
    paths = dict.fromkeys(ACTIVITIES, "")
    for x, interval in enumerate(view.intervals, MOST_INTERVALS - len(view.intervals)):
        y = 100.0
        for activity, share in zip(ACTIVITIES, interval.get(name, ()), strict=False):
            height = round(100 * share)
            y -= height
            paths[activity] += f"M{x} {y:.0f}h1v{height}h-1z" if height else ""
    return "".join(f'<path class="{activity}" d="{path}"/>' for activity, path in paths.items())


def samples(found: Sequence[Sample]) -> str:
    """Return what the weights wrote, the newest first."""
    return "".join(
        f"<article><h3>step {sample.step:,}</h3>"
        f'<p class="text">{escape(printable(sample.text))}</p></article>'
        for sample in reversed(found)
    )


def coloured(sample: Sample, unit: int) -> str:
    """Return a text with each character on a colour that shows a hidden unit's value after it.

    Characters below zero are underlined, too.
    """
    spans = []
    for character, value in zip(sample.text, sample.states[:, unit].tolist(), strict=True):
        sign = "high" if value >= 0 else "low"
        shown = {"\n": "↵\n", "\t": "⇥"}.get(character) or escape(printable(character))
        style = f"--a:{abs(value):.2f}"
        spans.append(f'<span class="{sign}" style="{style}" title="{signed(value)}">{shown}</span>')
    return "".join(spans)
