"""This program in one process: the full step, one shard."""

from collections.abc import Callable

from manychar.numerics.corpus import Streams
from manychar.numerics.definition import Definition
from manychar.numerics.train import advance, kernel_of, start
from tests.benchmarks.pace import per_second
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Train on; the figure is characters a second."""
    vocabulary_size, ids = read_ids(task.text)
    definition = Definition.from_mapping(
        {
            **vars(Definition(corpus_sha256="0" * 64)),
            "hidden": task.hidden,
            "seq_length": task.seq_length,
            "shards": 1,
            "streams": task.streams,
            "dtype": task.dtype,
        }
    )
    streams = Streams(ids, 1, task.streams, task.seq_length)
    kernel = kernel_of(definition, vocabulary_size)
    state = start(definition, vocabulary_size)

    def step() -> None:
        nonlocal state
        state = advance(state, definition, streams, kernel)

    def go(_: str) -> float:
        return definition.characters_per_step * per_second(step, task.seconds)

    per_second(step, min(task.seconds, 0.5))
    return "", go
