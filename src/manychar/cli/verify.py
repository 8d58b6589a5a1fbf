"""The command `verify`, and its hidden share of the work."""

import json
import sys
from typing import Annotated

import typer

from manychar.cli.console import write
from manychar.cli.options import Run
from manychar.cli.run_setup import numerics_of
from manychar.numerics.option import Option, counted
from manychar.processes.log import logger
from manychar.processes.numerics_pinning import pin
from manychar.processes.usable_cores import usable_cores
from manychar.protocol.run_operation import MOST_WORKERS

FIRST = Option("First step to compute again.", names=("--from",), least=0)
LAST = Option("Last step to compute again.", names=("--to",), least=0, without="newest")
CORES = Option("Processes that compute.", least=1, most=MOST_WORKERS, without="cores")


def verify(
    run_dir: Run,
    begin: Annotated[int, FIRST] = 0,
    end: Annotated[int | None, LAST] = None,
    processes: Annotated[int | None, CORES] = None,
) -> None:
    """Train a run again on this machine and compare every checkpoint bit by bit."""
    pin(numerics_of(run_dir))
    from manychar.storage.run_directory import open_run
    from manychar.verification.verify import compare, plan

    todo = plan(open_run(run_dir), begin=begin, end=end)
    if todo.remark:
        logger.info(todo.remark)
    finding = compare(todo, processes=processes or usable_cores())
    if finding is not None:
        write(f"DIFFERENT: first at step {finding.step:,}, in {finding.array}\n")
        raise typer.Exit(1)
    steps, checkpoints = counted(todo.recorded, "step"), counted(todo.checkpoints, "checkpoint")
    if todo.checkpoints <= ((first := todo.pieces[0].begin) == 0):
        checkpoints = f"no checkpoint after that of step {first:,}"
    others = todo.steps - todo.recorded
    rest = f"; {counted(others, 'step')} without a record" if others else ""
    write(f"the same bits: {steps}, {checkpoints}{rest}\n")


def verify_share(run_dir: Run) -> None:
    """Verify the pieces on standard input, for `verify`; print the first difference as JSON."""
    pin(numerics_of(run_dir))
    from manychar.verification.verify import Piece, check

    pieces = [Piece(*each) for each in json.load(sys.stdin)]
    write(json.dumps(check(run_dir, pieces)))
