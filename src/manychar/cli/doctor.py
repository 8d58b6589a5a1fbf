"""The command `doctor`."""

import json
from typing import Annotated

from manychar.cli.console import write
from manychar.cli.options import argument
from manychar.processes.numerics_pinning import pin


def doctor() -> None:
    """Report as JSON whether this machine can join a fleet: CPU, BLAS, numpy, limits."""
    from manychar.verification.doctor import examine

    write(json.dumps(examine(), indent=2) + "\n")


def fingerprints(numerics: Annotated[str, argument("NUMERICS", "portable or native")]) -> None:
    """Print the libraries and fingerprints of this process as JSON, for `doctor`."""
    pin(numerics)
    from manychar.verification.doctor import compute_fingerprints

    write(json.dumps(compute_fingerprints()))
