"""Sampling: from a run directory, a checkpoint alone, or a live server, on any machine."""

import logging
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from manychar.numerics.model import Parameters, sample
from manychar.processes.errors import UserError
from manychar.processes.text_format import printable
from manychar.storage.checkpoint import read_checkpoint
from manychar.storage.run_directory import open_run

logger = logging.getLogger(__name__)


def load(source: Path) -> tuple[Parameters, str]:
    """Return (parameters, vocabulary) of a checkpoint file, or of a run's newest whole checkpoint.

    Raises UserError where there is none, or the file is damaged.
    """
    if source.is_dir():
        checkpoint, damaged = open_run(source).newest_checkpoint()
        for complaint in damaged.values():
            logger.warning(f"{complaint}; taking an earlier checkpoint")
    else:
        checkpoint = read_checkpoint(source)
    return checkpoint.state.parameters, checkpoint.vocabulary


def draw(
    parameters: Parameters,
    vocabulary: str,
    generator: np.random.Generator,
    *,
    length: int,
    prime: str = "",
    temperature: float = 1.0,
    top_k: int = 0,
) -> Iterator[str]:
    """Yield `length` characters that follow a newline (or the first character) and the prime.

    Raises UserError for a prime with a character that the model does not know.
    """
    start = max(vocabulary.find("\n"), 0)
    ids = np.array([start, *_encode(prime, vocabulary)], dtype=np.intp)
    drawn = sample(parameters, generator, prime=ids, temperature=temperature, top_k=top_k)
    return (vocabulary[character] for character in islice(drawn, length))


def training_sample(
    parameters: Parameters, vocabulary: str, *, seed: int, step: int, length: int
) -> str:
    """Return the sample that belongs to a step of a run, wherever it is drawn."""
    generator = np.random.default_rng([seed, 1, step])
    return "".join(draw(parameters, vocabulary, generator, length=length))


def for_reading(text: str) -> str:
    """Return a text as standard output may have it: a terminal is sent no control sequences."""
    return printable(text) if sys.stdout.isatty() else text


def _encode(text: str, vocabulary: str) -> list[int]:
    id_of = {character: i for i, character in enumerate(vocabulary)}
    for position, character in enumerate(text):
        if character not in id_of:
            raise UserError(
                f"the model does not know {character!r} (U+{ord(character):04X}), character"
                f" {position + 1} of the prime: it was not in the text that it was trained on"
            )
    return [id_of[character] for character in text]
