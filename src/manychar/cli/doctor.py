"""The command `doctor`."""

import json
from typing import Any

from manychar.cli.console import write
from manychar.cli.options import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Report whether this machine can join a fleet: CPU, BLAS, numpy, fingerprints, limits."""
    from manychar.verification.doctor import examine

    found = examine()
    if as_json:
        write(json.dumps(found, indent=2) + "\n")
        return
    for name, value in _flat(found):
        write(f"{name:<44}{value}\n")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name} ")
        else:
            rows.append((prefix + name, ", ".join(value) if isinstance(value, list) else value))
    return rows
