"""The command `doctor`."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

from manychar.cli.console import write
from manychar.cli.options import AsJson, argument
from manychar.processes.numerics_pinning import pin


def doctor(as_json: AsJson = False) -> None:
    """Report whether this machine can join a fleet: CPU, BLAS, numpy, fingerprints, limits."""
    from manychar.verification.doctor import examine

    found = examine()
    write(json.dumps(found, indent=2) + "\n" if as_json else "".join(_lines(found)))


def fingerprints(numerics: Annotated[str, argument("NUMERICS", "portable or native")]) -> None:
    """Print the libraries and fingerprints of this process as JSON, for `doctor`."""
    pin(numerics)
    from manychar.verification.doctor import compute_fingerprints

    write(json.dumps(compute_fingerprints()))


def _lines(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{name} ")
        else:
            yield f"{prefix + name:<44}{value}\n"
