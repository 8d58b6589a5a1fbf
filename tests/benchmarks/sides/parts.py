"""A step of one process, part by part: what each costs when it is done again and again."""

import timeit
from collections.abc import Callable

import numpy as np

from manychar.numerics import clipped_adagrad
from manychar.numerics.kernel import no_progress
from manychar.numerics.training_step import advance, kernel_of, start
from tests.benchmarks.sides.texts import definition_of, streams_of
from tests.benchmarks.task import Task

REPEATS, AT_ONCE = 40, 3


def prepare(task: Task) -> tuple[str, Callable[[str], dict[str, float]]]:
    """Time the parts; the figure is µs by part, each the least of many."""
    definition = definition_of(task)
    vocabulary_size, streams = streams_of(task)
    kernel, state = (kernel_of(definition, vocabulary_size), start(definition, vocabulary_size))
    gradient = np.ones_like(state.memory)
    advance(state, definition, streams, kernel)
    parts = {
        "weights into the kernel": lambda: kernel.load(state.parameters.flat),
        "forward through time": lambda: kernel._compute_states(no_progress),
        "outputs, softmax, loss": lambda: kernel._compute_loss(no_progress),
        "back through time": lambda: kernel._back_through_time(no_progress),
        "gradient of the weights": lambda: kernel._compute_gradient(no_progress),
        "mean, clip, Adagrad": lambda: clipped_adagrad.update(
            state.parameters.flat,
            state.memory,
            (gradient,),
            total_streams=definition.total_streams,
            clip=definition.clip,
            learning_rate=definition.learning_rate,
        ),
        "the whole step": lambda: advance(state, definition, streams, kernel),
    }

    def go(_: str) -> dict[str, float]:
        return {
            name: 1e6 * min(timeit.repeat(part, number=AT_ONCE, repeat=REPEATS)) / AT_ONCE
            for name, part in parts.items()
        }

    return "", go
