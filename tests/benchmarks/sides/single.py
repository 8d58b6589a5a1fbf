"""This program in one process: the full step, every shard computed after another."""

from collections.abc import Callable

from manychar.numerics.training_step import advance, kernel_of, start
from tests.benchmarks.pace import per_second
from tests.benchmarks.sides.texts import definition_of, streams_of
from tests.benchmarks.task import Task


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Train on; the figure is characters a second."""
    definition = definition_of(task)
    vocabulary_size, streams = streams_of(task)
    kernel = kernel_of(definition, vocabulary_size)
    state = start(definition, vocabulary_size)

    def step() -> None:
        nonlocal state
        state = advance(state, definition, streams, kernel)

    def go(_: str) -> float:
        return definition.characters_per_step * per_second(step, task.seconds)

    per_second(step, min(task.seconds, 0.5))
    return "", go
