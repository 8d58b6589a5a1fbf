"""Trains a run again in one process, and compares two states bit for bit."""

from collections.abc import Iterator

from manychar.numerics.training_step import TrainingState, advance, kernel_of, start
from manychar.storage.checkpoint import checkpoint_path, tensors_of
from manychar.storage.run_directory import RunDirectory


def first_difference(one: TrainingState, other: TrainingState) -> str:
    """Return the name of the first array in which two states differ, or nothing."""
    tensors = tensors_of(other)
    for name, array in tensors_of(one).items():
        if array.tobytes() != tensors[name].tobytes():
            return name
    return "" if one.smooth_loss == other.smooth_loss else "smooth_loss"


def replay(
    directory: RunDirectory, steps: int, state: TrainingState | None = None
) -> Iterator[TrainingState]:
    """Yield the states of a run from this one on, else the first, computed in this process."""
    vocabulary, corpus = directory.corpus()
    definition = directory.definition
    kernel = kernel_of(definition, len(vocabulary))
    if state is None:
        first = checkpoint_path(directory.checkpoints, 0)
        given = directory.read(first).state.parameters if definition.initial_weights else None
        state = start(definition, len(vocabulary), given)
    yield state
    for _ in range(steps):
        state = advance(state, definition, corpus, kernel)
        yield state
