"""Loss curves of several runs in one picture, without a screen. Needs `manychar[plot]`."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any, Literal, Self

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from manychar.observability.history import read_history, require_points
from manychar.processes.errors import UserError, because
from manychar.processes.text_format import bits_of
from manychar.storage.atomic_files import replace_where_told
from manychar.storage.run_directory import open_run

By = Literal["steps", "characters"]
Points = tuple[list[float], list[float]]
"""(where, nats a character)."""

SUFFIXES = (".png", ".svg")
UNITS: Any = (bits_of, lambda bits: bits * math.log(2))
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text, for searching and for screen readers
    "svg.hashsalt": "manychar",  # the same figures, the same file
    "axes.spines.top": False,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run's losses."""

    name: str
    loss: Points
    smooth_loss: Points
    validation: Points

    @classmethod
    def of(cls, run: Path, by: By) -> Self:
        """Read a run directory. Raises UserError where it is none, or has no losses yet."""
        directory = open_run(run)
        history = read_history(directory)
        require_points(history, directory)
        points, losses = history.points, history.validation_losses
        scale = 1.0 if by == "steps" else float(directory.definition.characters_per_step)
        x = [point.step * scale for point in points]
        return cls(
            name=str(run),
            loss=(x, [point.loss for point in points]),
            smooth_loss=(x, [point.smooth_loss for point in points]),
            validation=([step * scale for step, _ in losses], [nats for _, nats in losses]),
        )


def plot(runs: list[Path], target: Path, by: By) -> None:
    """Draw the runs' curves into a PNG or an SVG file, whole or not at all. Raises UserError."""
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{target}: a picture is a .png or an .svg; give -o FILE.png or FILE.svg")
    figure = draw([Curve.of(run, by) for run in runs], by)
    picture = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(picture, format=suffix[1:], metadata={"Date": None})
    try:
        replace_where_told(target, picture.getvalue())
    except OSError as error:
        raise UserError(f"{target}: {because(error)}; give another -o FILE") from None


def draw(curves: list[Curve], by: By) -> Figure:
    """Return the picture: a colour a run; its loss faint, smooth, and, in dots, of validation."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            colour, name = f"C{number % 10}", curve.name
            axes.plot(*curve.loss, color=colour, alpha=0.4, linewidth=0.8)
            axes.plot(*curve.smooth_loss, color=colour, label=f"{name}: smooth loss")
            if curve.validation[0]:
                label = f"{name}: validation loss"
                axes.plot(*curve.validation, "o--", color=colour, markersize=4, label=label)
        axes.set_xlabel(by)
        axes.set_ylabel("nats a character")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.secondary_yaxis("right", functions=UNITS).set_ylabel("bits a character")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure
