"""The command `doctor`."""

import json
from typing import Annotated, Literal

from manychar.cli.console import write
from manychar.numerics.option import Option
from manychar.processes.numerics_pinning import pin

SETTING = Option("Arithmetic whose libraries and fingerprints are reported.")


def doctor(numerics: Annotated[Literal["portable", "native"], SETTING] = "portable") -> None:
    """Report as JSON whether this machine can join a fleet: CPU, BLAS, numpy, limits."""
    pin(numerics)
    from manychar.verification.doctor import examine

    write(json.dumps({**examine(), "numerics": numerics}, indent=2) + "\n")
