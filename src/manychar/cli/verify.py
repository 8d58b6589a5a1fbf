"""The command `verify`, and its hidden share of the work."""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer

from manychar.cli.console import write
from manychar.cli.options import Run
from manychar.cli.run_setup import numerics_of
from manychar.fleet.launch_options import usable_cores
from manychar.numerics.option import Option
from manychar.processes.numerics_pinning import pin

logger = logging.getLogger(__name__)

FIRST = Option("First step to compute again.", names=("--from",), least=0)
LAST = Option("Last step to compute again.", names=("--to",), least=0, without="newest")
CORES = Option("Processes that compute.", least=1, without="cores")
LINE_EVERY = 2.0  # seconds


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
    progress = _counter(todo.steps)
    finding = compare(todo, processes=processes or usable_cores(), progress=progress)
    if finding is not None:
        write(f"DIFFERENT: first at step {finding.step:,}, in {finding.array}\n")
        raise typer.Exit(1)
    plural = "s" if todo.checkpoints != 1 else ""
    write(f"the same bits: {todo.steps:,} steps, {todo.checkpoints} checkpoint{plural}\n")


def _counter(total: int) -> Callable[[int], None]:
    """Return what counts the steps that are done, and logs the count every two seconds."""
    done, next_line = 0, time.monotonic() + LINE_EVERY

    def add(more: int) -> None:
        nonlocal done, next_line
        done += more
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE_EVERY
            logger.info(f"{done:,} of {total:,} steps")

    return add


def verify_share(run_dir: Run) -> None:
    """Verify the pieces on standard input, for `verify`; print what was found as JSON lines."""
    pin(numerics_of(run_dir))
    from manychar.verification.verify import check_share

    pieces = json.loads(sys.stdin.readline())
    check_share(run_dir, pieces, lambda line: print(json.dumps(line), flush=True))
