"""Reads checkpoints and returns their loss on the end of the text, which is not trained on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from manychar.numerics.evaluation import loss_of
from manychar.storage.checkpoint import read_checkpoint
from tests.benchmarks.task import Task


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Take a checkpoint's path; the figure is nats a character.

    A character of the last part that the training part does not have is left out.
    """
    held = Path(task.text).read_bytes().decode()[-task.validation_characters :]

    def go(path: str) -> float:
        checkpoint = read_checkpoint(Path(path))
        id_of = {character: i for i, character in enumerate(checkpoint.vocabulary)}
        ids = np.array([id_of[character] for character in held if character in id_of])
        return loss_of(checkpoint.state.parameters, ids)

    return "", go
