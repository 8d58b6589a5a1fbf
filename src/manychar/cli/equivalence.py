"""The command `equivalence`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from manychar.cli.console import write
from manychar.cli.options import TextFiles
from manychar.cli.run_setup import defined
from manychar.numerics.option import Option
from manychar.processes.errors import RUN_FAILED, UserError
from manychar.processes.log import logger
from manychar.processes.numerics_pinning import pin
from manychar.processes.signals import STOPS, end_by_exception, handle
from manychar.protocol.run_operation import Operation

STEPS = Option("Steps of each trial.", least=3)
EVERY = Option("Steps between comparisons.", least=1)
FLEETS: tuple[dict[str, Any], ...] = (
    {"workers": 1, "compute": True, "kill": None, "slow": False},
    {"workers": 2, "compute": False, "kill": "worker", "slow": False},
    {"workers": 4, "compute": True, "kill": "server", "slow": True},
)


def equivalence(
    text: TextFiles = None,
    steps: Annotated[int, STEPS] = 600,
    checkpoint_every: Annotated[int, EVERY] = 150,
    **flags: Any,
) -> None:
    """Train in one process, then with 1, 2 and 4 workers; compare every bit.

    Exit code 1 if bits differ, 3 if it ended before all had joined, and some been killed or slowed.
    """
    pin(flags.get("numerics", "portable"))
    from manychar.storage.run_directory import create_run
    from manychar.verification.equivalence import alone, difference_between, in_fleet, table

    quiet: dict[str, Any] = {"keep_checkpoints": 0, "sample_every": 0, "sample_length": 0}
    operation = Operation(
        steps=steps, checkpoint_every=checkpoint_every, workers=1, compute=False, **quiet
    )
    handle(*STOPS, by=end_by_exception)  # the scratch directory is removed
    with TemporaryDirectory(prefix="manychar-") as scratch:
        with defined(text, flags, Path(scratch)) as (definition, corpus):
            count = corpus.characters
            logger.info(f"{corpus.source}: {count:,} characters, {steps:,} steps a trial")
            run = create_run(Path(scratch) / "one-process", definition, corpus, operation)
        done = [alone(run)]
        for fleet in FLEETS:
            count, computes = fleet["workers"], ", the server one of them" * fleet["compute"]
            slowed = ", slowed until the kill" * bool(fleet["kill"])
            logger.info(f"{count} worker{'s' if count > 1 else ''}{computes}{slowed}")
            done.append(in_fleet(run, **fleet, alone_seconds=done[0].seconds))
        write(table(done))
    if difference := difference_between(done):
        write(f"DIFFERENT: {difference}\n")
        raise typer.Exit(1)
    if short := [trial.title for trial in done if not trial.complete]:
        reason = f"the same bits, but not the whole trial: {'; '.join(short)}: give more --steps"
        raise UserError(reason, code=RUN_FAILED)
    write("the same bits: weights, Adagrad's memory, hidden states and smooth loss\n")
