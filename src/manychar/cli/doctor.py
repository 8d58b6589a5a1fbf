"""The command `doctor`."""

import json
from collections.abc import Iterator
from typing import Any

from manychar.cli.console import write
from manychar.cli.options import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Report whether this machine can join a fleet: CPU, BLAS, numpy, fingerprints, limits."""
    from manychar.verification.doctor import examine

    found = examine()
    write(json.dumps(found, indent=2) + "\n" if as_json else "".join(_lines(found)))


def _lines(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{name} ")
        else:
            text = ", ".join(value) if isinstance(value, list) else value
            yield f"{prefix + name:<44}{text}\n"
