"""Models to sample from: of a run directory, a checkpoint alone, or a live server."""

import contextlib
import logging
import sys
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from manychar.network.keys import ClientKey
from manychar.numerics.model import Parameters, sample
from manychar.observability.observer_client import ObserverClient, events_of
from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError
from manychar.processes.text_format import printable
from manychar.protocol.messages import Dimensions, Weights, WeightsRequest, Welcome
from manychar.storage.checkpoint import read_checkpoint
from manychar.storage.run_directory import RunDirectory, open_run

logger = logging.getLogger(__name__)

Model = tuple[Parameters, str]
"""Parameters and vocabulary."""


def load(source: Path) -> Model:
    """Return the model of a checkpoint file, or of a run's newest whole checkpoint.

    Raises UserError where there is none, or the file is damaged.
    """
    if source.is_dir():
        checkpoint, damaged = open_run(source).newest_checkpoint()
        for complaint in damaged.values():
            logger.warning(f"{complaint}; taking an earlier checkpoint")
    else:
        checkpoint = read_checkpoint(source)
    return checkpoint.state.parameters, checkpoint.vocabulary


def load_of_run(directory: RunDirectory, path: Path) -> Model | None:
    """Return the model of a run's checkpoint; None, and a warning, where it cannot be read."""
    try:
        checkpoint = directory.read(path)
    except UserError as error:
        logger.warning(str(error))
        return None
    return checkpoint.state.parameters, checkpoint.vocabulary


def models(
    endpoint: str, key: ClientKey | None, *, connect_timeout: float, change: float = 0.0
) -> Generator[tuple[int, Model]]:
    """Yield (step, model) of a live run, again when the weights have changed.

    `change` is relative: the norm of the difference by the norm of those yielded before. Raises
    UserError as `events_of` does.
    """
    client = ObserverClient(endpoint, key, connect_timeout=connect_timeout)
    shown, before = -1, None
    with contextlib.closing(events_of(client)) as events:
        for event in events:
            if isinstance(event, Snapshot) and event.status.step > shown:
                client.request(WeightsRequest)
            if not isinstance(event, Weights) or client.welcome is None:
                continue
            model = model_of(client.welcome, event)
            if before is None or _difference(before, model[0]) >= change:
                shown, before = event.version, model[0]
                yield shown, model


def _difference(before: Parameters, now: Parameters) -> float:
    norm = float(np.linalg.norm(before.flat))
    return float(np.linalg.norm(now.flat - before.flat)) / max(norm, 1e-30)


def model_of(welcome: Welcome, weights: Weights) -> Model:
    """Return the model of a server's weights."""
    return parameters_of(welcome.dimensions, weights), bytes(welcome.vocabulary).decode()


def parameters_of(size: Dimensions, weights: Weights) -> Parameters:
    """Return a copy of the parameters in a message."""
    flat = np.frombuffer(weights.weights, np.dtype(size.dtype).newbyteorder("<")).copy()
    return Parameters(flat, size.vocabulary_size, size.hidden)


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
