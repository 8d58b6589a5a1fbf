"""What a side is told to do, as one JSON text on its command line."""

import dataclasses
import json
from typing import Self

CHARACTERS_A_LOOK = 100_000
"""Between two looks at the loss of a model that is trained until it is low enough."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Sizes and text of one side's work; `seconds` is how long it runs each time it is told to go.

    `numerics` is what a side of this program pins before numpy is imported; empty for the others,
    which have one BLAS thread by their environment. `form` chooses between a side's ways. Processes
    that work together find one another at the file `meeting`, as number `rank` of `size`.
    """

    text: str
    seconds: float
    hidden: int = 100
    shards: int = 1
    streams: int = 1
    seq_length: int = 25
    dtype: str = "float32"
    numerics: str = ""
    form: str = ""
    rank: int = 0
    size: int = 1
    meeting: str = ""
    validation_characters: int = 0
    target: float = 0.0
    cap: float = 0.0

    def unpinned(self) -> "Task":
        """Return the task of a side that is not this program."""
        return dataclasses.replace(self, numerics="")

    def in_one_batch(self) -> "Task":
        """Return a task with the same streams, all in one shard."""
        return dataclasses.replace(self, shards=1, streams=self.shards * self.streams)

    def to_json(self) -> str:
        """Return it as a process takes it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` made a text of."""
        return cls(**json.loads(text))
