"""What the command line asked for, as every row takes it; and which packages are there."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from manychar.numerics.run_definition import Definition
from tests.benchmarks.program import Program
from tests.benchmarks.task import Task


class MissingError(RuntimeError):
    """A package that a row needs is not installed. The message says which, and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """`text` is a file; `seconds` are those of one measurement, `cap` of one run to a loss.

    `scratch` is a folder for run directories, which is gone afterwards; `before` is an earlier
    version, `part` one part of the row `targets`; `target` is in nats a character, on the last
    `validation_characters` characters; `results` keeps the trainings of the row `recipe`.
    """

    text: Path
    scratch: Path
    before: Program | None = None
    part: str = ""
    rounds: int = 7
    seeds: int = 9
    seconds: float = 3.0
    cap: float = 60.0
    validation_characters: int = 30_000
    target: float = 2.2
    results: Path | None = None

    def task(self, **others: Any) -> Task:
        """Return a task on the plan's text, native where nothing else is said."""
        return Task(text=str(self.text), seconds=self.seconds, **{"numerics": "native", **others})

    def default_task(self, hidden: int = 100) -> Task:
        """Return one of the default shards and streams, portable."""
        usual = Definition(corpus_sha256="0" * 64, hidden=hidden)
        sizes = {"shards": usual.shards, "streams": usual.streams}
        return self.task(numerics="portable", hidden=hidden, **sizes)


def require(package: str) -> None:
    """Raise MissingError unless the package can be imported."""
    if importlib.util.find_spec(package) is None:
        raise MissingError(f"{package} is not here: install manychar[benchmarks]")
