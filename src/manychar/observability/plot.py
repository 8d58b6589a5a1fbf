"""Loss curves of several runs in one picture, without a screen. Needs `manychar[plot]`."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from manychar.observability.history import read_history
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.storage.append_log import damage_of
from manychar.storage.atomic_files import write_output
from manychar.storage.journal import METRICS_NAME
from manychar.storage.run_directory import open_run
from manychar.storage.validation_log import VALIDATION_NAME

SUFFIXES = (".png", ".svg")
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text, for searching and for screen readers
    "svg.hashsalt": "manychar",  # the same figures, the same file
    "text.parse_math": False,  # a run's path may have dollar signs
    "axes.spines.top": False,
}


def draw_curves(runs: list[Path], target: Path) -> None:
    """Draw the runs' curves into a PNG or an SVG file, whole or not at all. Raises UserError."""
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{target}: a picture is a .png or an .svg; give -o FILE.png or FILE.svg")
    picture = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure_of(runs).savefig(picture, format=suffix[1:], metadata={"Date": None})
    write_output(target, picture.getvalue())


def figure_of(runs: list[Path]) -> Figure:
    """Return the picture: a colour for each run. Raises UserError for a run without losses."""
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, run in enumerate(runs):
        _draw_run(axes, run, colour=f"C{number % 10}")
    axes.set_xlabel("steps")
    axes.set_ylabel("nats a character")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _draw_run(axes: Axes, run: Path, *, colour: str) -> None:
    """Draw a run's loss, its smooth loss faint, and its validation losses in dots."""
    history = read_history(open_run(run))
    faults = damage_of(run / METRICS_NAME, run / VALIDATION_NAME)
    if not history.points:
        raise UserError([*faults, f"{run}: no losses yet: there is a line every 100 steps"][0])
    for fault in faults:
        logger.warning(f"{fault}: drawn up to there")
    steps = [point.step for point in history.points]
    losses = [point.loss for point in history.points]
    smooth_losses = [point.smooth_loss for point in history.points]
    axes.plot(steps, losses, color=colour, label=f"{run}: loss")
    axes.plot(steps, smooth_losses, color=colour, alpha=0.4, linewidth=0.8)
    if history.validation_losses:
        validated, nats = zip(*history.validation_losses, strict=True)
        label = f"{run}: validation loss"
        axes.plot(validated, nats, "o--", color=colour, markersize=4, label=label)
