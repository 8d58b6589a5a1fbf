"""A version of this program: the one that is tested here, or an earlier one beside it."""

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_WHERE = "import manychar, pathlib; print(pathlib.Path(manychar.__file__).parents[2])"
_IDLE_WORKER_OF_FC2E580 = """
import runpy
from manychar.runtime import pinning
pinning.pin(NUMERICS)
pinning._pinned.append("native")  # which that version's idle worker asks for
runpy.run_module("tests.benchmarks.idle_worker", run_name="__main__", alter_sys=True)
"""


@dataclasses.dataclass(frozen=True)
class Program:
    """An interpreter, and the checkout whose `manychar` and `tests` it imports."""

    python: str = sys.executable
    root: Path = ROOT

    def idle_worker(self, numerics: str) -> Sequence[str]:
        """Return the interpreter's arguments that start a worker which computes nothing."""
        if self.root == ROOT:
            return ("-m", "tests.benchmarks.idle_worker")
        return ("-c", _IDLE_WORKER_OF_FC2E580.replace("NUMERICS", repr(numerics)))


HERE = Program()


def program_of(python: str) -> Program:
    """Return the version that another environment's interpreter imports.

    Raises ValueError where there is no checkout with its benchmarks.
    """
    path = Path(python).absolute()
    try:
        done = subprocess.run(
            [path, "-c", _WHERE], check=False, cwd="/", capture_output=True, text=True
        )
    except OSError as error:
        raise ValueError(f"{python}: {error.strerror}") from None
    root = Path(done.stdout.strip() or "/")
    if not (root / "tests" / "benchmarks" / "idle_worker.py").is_file():
        raise ValueError(
            f"{python} does not import manychar from a checkout: install one with pip install -e"
        )
    return Program(str(path), root)
