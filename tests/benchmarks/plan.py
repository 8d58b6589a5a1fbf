"""What the command line asked for, as every row takes it; and which packages are there."""

import dataclasses
import importlib.util
from pathlib import Path

from tests.benchmarks.task import Task


class MissingError(RuntimeError):
    """A package that a row needs is not installed. The message says which, and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """`text` is a file; `seconds` are those of one measurement, `cap` of one run to a loss.

    `scratch` is a folder for run directories, which is gone afterwards; `target` is in nats a
    character, on the last `held_out` characters.
    """

    text: Path
    scratch: Path
    rounds: int = 5
    seeds: int = 5
    seconds: float = 3.0
    cap: float = 60.0
    held_out: int = 30_000
    target: float = 2.2

    def task(self, *, numerics: str = "native", hidden: int = 100, streams: int = 1) -> Task:
        """Return a task on the plan's text."""
        return Task(
            text=str(self.text),
            seconds=self.seconds,
            hidden=hidden,
            streams=streams,
            numerics=numerics,
        )


def require(package: str) -> None:
    """Raise MissingError unless the package can be imported."""
    if importlib.util.find_spec(package) is None:
        raise MissingError(f"{package} is not here: install manychar[benchmarks]")
