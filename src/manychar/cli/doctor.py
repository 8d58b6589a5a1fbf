"""The command `doctor`."""

import json
from typing import Any

from manychar.cli.console import write
from manychar.processes.numerics_pinning import pin


def doctor(**flags: Any) -> None:
    """Report as JSON whether this machine can join a fleet: CPU, BLAS, numpy, limits."""
    numerics = flags.get("numerics", "portable")
    pin(numerics)
    from manychar.verification.doctor import examine

    write(json.dumps({**examine(), "numerics": numerics}, indent=2) + "\n")
