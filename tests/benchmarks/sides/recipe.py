"""One training in one process, with the losses on the validation text on its way."""

import json
import math
from collections.abc import Callable

import numpy as np

from manychar.numerics.corpus import Streams
from manychar.numerics.evaluation import loss_of
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import advance, kernel_of, start
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task


def prepare(task: Task) -> tuple[str, Callable[[str], list[float]]]:
    """Take a definition's values and `marks`; the figures are the losses after so many characters.

    All streams are one shard, which is the fastest in one process, and the same recipe. A loss that
    is not finite, or the one of a `target`, is the last.
    """
    V, ids = read_ids(task.text)
    held, rest = ids[-task.validation_characters :], ids[: -task.validation_characters]

    def go(argument: str) -> list[float]:
        asked = json.loads(argument)
        marks, target = asked.pop("marks"), asked.pop("target", 0.0)
        definition = Definition(corpus_sha256="0" * 64, shards=1, **asked)
        streams = Streams(rest, 1, definition.streams, definition.seq_length)
        state, kernel = start(definition, V), kernel_of(definition, V)
        losses: list[float] = []
        with np.errstate(over="ignore", invalid="ignore"):
            for mark in marks:
                while state.step * definition.characters_per_step < mark:
                    state = advance(state, definition, streams, kernel)
                loss = loss_of(state.parameters, held)
                losses.append(loss if math.isfinite(loss) else math.inf)
                if not target < losses[-1] < math.inf:
                    break
        return losses

    return "", go
