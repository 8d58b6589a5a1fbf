"""What a delay does to learning: one process tells, because the bits are the definition's alone."""

import dataclasses
import json
from collections.abc import Callable

from manychar.numerics.corpus import Streams
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import advance, kernel_of, start
from tests.benchmarks.sides.held_out import nats_per_character
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task


def prepare(task: Task) -> tuple[str, Callable[[str], list[float]]]:
    """Take {"delay": D, "seed": N}; the figures are held-out losses after `marks` characters."""
    V, ids = read_ids(task.text)
    held, rest = ids[-task.held_out :], ids[: -task.held_out]

    def go(argument: str) -> list[float]:
        definition = dataclasses.replace(
            Definition(corpus_sha256="0" * 64, hidden=task.hidden), **json.loads(argument)
        )
        streams = Streams(rest, definition.shards, definition.streams, definition.seq_length)
        state, kernel = start(definition, V), kernel_of(definition, V)
        losses = []
        for mark in task.marks:
            while state.step * definition.characters_per_step < mark:
                state = advance(state, definition, streams, kernel)
            losses.append(nats_per_character(state.parameters.named(), held))
        return losses

    return "", go
