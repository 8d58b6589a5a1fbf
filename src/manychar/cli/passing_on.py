"""The commands that pass a run on to other programs: export, plot, follow."""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from manychar.cli.options import SINKS, Key, Patience, with_flags
from manychar.cli.run_setup import source_of
from manychar.network.endpoints import is_endpoint
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin
from manychar.processes.optional_dependencies import needing

logger = logging.getLogger(__name__)


def export(
    source: Annotated[
        str, typer.Argument(help="A run directory, a checkpoint, or a live server's endpoint.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The safetensors file to write.")
    ],
    patience: Patience = 10.0,
    key: Key = None,
) -> None:
    """Write the weights as a state dict that PyTorch's nn.RNN and nn.Linear load."""
    pin("portable")
    from manychar.storage.torch_export import export as write_state_dict

    parameters, vocabulary = source_of(source, key, patience=patience)
    write_state_dict(parameters, vocabulary, output)
    logger.info(
        f"{output}: rnn = nn.RNN({parameters.vocabulary_size}, {parameters.hidden_size},"
        f" batch_first=True), linear = nn.Linear({parameters.hidden_size},"
        f" {parameters.vocabulary_size})"
    )


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .png or .svg to write.")
    ],
    by: Annotated[
        Literal["steps", "characters"],
        typer.Option(help="What the curves run along: runs with other batches differ in a step."),
    ] = "steps",
) -> None:
    """Draw the loss curves of one run or several into a picture."""
    pin("portable")
    with needing("plot", "manychar plot"):
        from manychar.observability.plot import plot as draw

    draw(runs, output, by)


@with_flags(SINKS)
def follow(
    source: Annotated[
        str, typer.Argument(help="Where the server listens; or a run directory, for its past.")
    ],
    patience: Patience = 600.0,
    key: Key = None,
    **flags: Any,
) -> None:
    """Follow a live run, and pass it on to TensorBoard or Prometheus until it ends."""
    pin("portable")
    from manychar.network.client_identity import find_key
    from manychar.observability.follow import SAMPLE_LENGTH
    from manychar.observability.follow import follow as pass_on
    from manychar.observability.history import pass_on as pass_on_past

    if not flags:
        raise UserError("nothing to pass it on to: give --tensorboard DIR or --metrics-port N")
    if is_endpoint(source):
        pass_on(source, find_key(key), patience=patience, **flags)
        return
    if "metrics_port" in flags:
        raise UserError("--metrics-port answers for a live run: give where its server listens")
    pass_on_past(Path(source), sample_length=SAMPLE_LENGTH, **flags)
