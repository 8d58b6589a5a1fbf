"""One process until its loss on the validation text of the text is low enough.

The form `plain` is min-char-rnn; `batch` is this program's recipe, with all streams in one batch.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from manychar.numerics.corpus import Streams
from manychar.numerics.evaluation import loss_of
from manychar.numerics.model import Parameters
from manychar.numerics.training_step import advance, kernel_of, start
from tests.benchmarks.sides.crossing import crossing
from tests.benchmarks.sides.plain import Plain
from tests.benchmarks.sides.texts import definition_of, read_ids
from tests.benchmarks.task import CHARACTERS_A_LOOK, Task


class Batch:
    """This program in one process, as `Plain` is min-char-rnn."""

    def __init__(self, ids: NDArray[Any], V: int, task: Task, seed: int) -> None:
        self._definition = dataclasses.replace(definition_of(task), seed=seed)
        self._streams = Streams(ids, 1, task.streams, task.seq_length)
        self._kernel = kernel_of(self._definition, V)
        self._state = start(self._definition, V)

    def step(self) -> None:
        self._state = advance(self._state, self._definition, self._streams, self._kernel)

    def weights(self) -> Parameters:
        return self._state.parameters


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Take a seed; the figure is seconds of training, looks at the loss left out."""
    V, ids = read_ids(task.text)
    held, rest = ids[-task.validation_characters :], ids[: -task.validation_characters]
    steps = max(1, CHARACTERS_A_LOOK // (task.streams * task.seq_length))

    def go(seed: str) -> float:
        model: Plain | Batch = (
            Plain(rest.tolist(), V, task.hidden, task.seq_length, int(seed))
            if task.form == "plain"
            else Batch(rest, V, task, int(seed))
        )
        before, seconds = (0.0, math.log(V)), 0.0
        while seconds < task.cap:
            began = time.perf_counter()
            for _ in range(steps):
                model.step()
            seconds += time.perf_counter() - began
            now = (seconds, loss_of(model.weights(), held))
            if now[1] <= task.target:
                return crossing(before, now, task.target)
            before = now
        return math.inf

    return "", go
