"""One line about the machine and the libraries that the figures hold for."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tests.benchmarks.asking import environment
from tests.benchmarks.program import ROOT


def describe() -> str:
    """Return the line; what computes is asked of a process like those that are measured."""
    found = _doctor()
    names, kernels = found["libraries"], found["kernels"]
    parts = [
        f"{found['cpu']}, {found['usable_cores']} cores",
        f"Python {found['python']}",
        f"numpy {names['numpy']}",
        f"{names['blas']} ({kernels['blas kernels']} kernels)",
        *(f"{name} {_version(name)}" for name in ("torch", "ray", "pyzmq")),
    ]
    return "; ".join(parts) + "; one BLAS thread a process."


def _doctor() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "manychar", "doctor", "--numerics", "native"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not here"
