"""Plain min-char-rnn until its loss on the held-out end of the text is low enough."""

import math
import time
from collections.abc import Callable

from tests.benchmarks.sides.held_out import crossing, nats_per_character
from tests.benchmarks.sides.plain import Plain
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task

LOOK_EVERY = 500


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Take a seed; the figure is seconds of training, looks at the loss left out."""
    V, ids = read_ids(task.text)
    held, rest = ids[-task.held_out :], ids[: -task.held_out].tolist()

    def go(seed: str) -> float:
        model = Plain(rest, V, task.hidden, task.seq_length, int(seed))
        before, seconds = (0.0, math.log(V)), 0.0
        while seconds < task.cap:
            start = time.perf_counter()
            for _ in range(LOOK_EVERY):
                model.step()
            seconds += time.perf_counter() - start
            now = (seconds, nats_per_character(model.named(), held))
            if now[1] <= task.target:
                return crossing(before, now, task.target)
            before = now
        return math.inf

    return "", go
