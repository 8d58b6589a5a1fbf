"""The command `plot`."""

from pathlib import Path
from typing import Annotated, Literal

from manychar.cli.options import Output, argument
from manychar.numerics.option import Option
from manychar.processes.optional_dependencies import needing

AXIS = "Horizontal axis; characters where the batches of the runs differ."


def plot(
    runs: Annotated[list[Path], argument("RUN", "Run directories.")],
    output: Output,
    by: Annotated[Literal["steps", "characters"], Option(AXIS)] = "steps",
) -> None:
    """Plot the loss curves of one or more runs to a .png or .svg file."""
    with needing("plot", "manychar plot"):
        from manychar.observability.plot import draw_curves

    draw_curves(runs, output, by)
