"""Hidden commands, which this program gives to its own child processes."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from manychar.cli.run_setup import numerics_of
from manychar.processes.numerics_pinning import pin

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def verify_share(run_dir: Run) -> None:
    """Verify the pieces on standard input; print progress and what was found as JSON lines."""
    pin(numerics_of(run_dir))
    from manychar.verification.verify import check_share

    check_share(run_dir, json.load(sys.stdin), lambda line: print(json.dumps(line), flush=True))
