"""Models to sample from: of a run directory, a checkpoint alone, or a live server."""

import contextlib
import sys
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from manychar.network.endpoints import is_endpoint, reachable
from manychar.network.keys import ClientKey
from manychar.numerics.model import Model, Parameters, sample
from manychar.observability.observer_client import ObserverClient, events_of, first
from manychar.observability.sampling_options import Sampling
from manychar.observability.snapshot import Snapshot
from manychar.observability.text_format import printable
from manychar.processes.log import logger
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.messages import Weights, WeightsRequest, Welcome
from manychar.storage.checkpoint import read_checkpoint
from manychar.storage.corpus_file import known_ids
from manychar.storage.run_directory import open_run
from manychar.storage.server_address import read_address


def load(source: str, key: ClientKey | None, *, connect_timeout: float) -> Model:
    """Return the model of a live server, a checkpoint, or a run's newest whole checkpoint.

    Raises UserError where there is none, or the file is damaged.
    """
    if is_endpoint(source):
        return first(models(source, key, connect_timeout=connect_timeout), source)[1]
    if (path := Path(source)).is_dir():
        checkpoint, damaged = open_run(path).newest_checkpoint()
        for complaint in damaged.values():
            logger.warning(f"{complaint}; taking that of step {checkpoint.state.step:,}")
        if (address := read_address(path)) is not None:
            where = reachable(address.endpoint, address.host) + " --key FILE" * bool(address.key)
            taken = f"the checkpoint of step {checkpoint.state.step:,}"
            logger.info(f"{source}: {taken}; its server may have newer weights: give {where}")
    else:
        checkpoint = read_checkpoint(path)
    return checkpoint.state.parameters, checkpoint.vocabulary


def models(
    source: str, key: ClientKey | None, *, connect_timeout: float
) -> Generator[tuple[int, Model]]:
    """Yield (step, model) of a live run, again when the weights have changed.

    Raises UserError as `events_of` does.
    """
    client = ObserverClient(source, key, connect_timeout=connect_timeout)
    shown = -1
    with contextlib.closing(events_of(client, object)) as events:
        for event in events:
            if isinstance(event, Snapshot) and event.status.step > shown:
                client.request(WeightsRequest)
            if isinstance(event, Weights) and client.welcome is not None:
                shown = event.version
                yield shown, model_of(client.welcome, event)


def model_of(welcome: Welcome, weights: Weights) -> Model:
    """Return the model of a server's weights."""
    return parameters_of(welcome.dimensions, weights), bytes(welcome.vocabulary).decode()


def parameters_of(size: Dimensions, weights: Weights) -> Parameters:
    """Return a copy of the parameters in a message."""
    flat = np.frombuffer(weights.weights, np.dtype(size.dtype).newbyteorder("<")).copy()
    return Parameters(flat, size.vocabulary_size, size.hidden)


def draw(model: Model, generator: np.random.Generator, options: Sampling) -> Iterator[str]:
    """Yield `length` characters that follow a newline (or the first character) and the prime.

    Raises UserError for a prime with a character that the model does not know.
    """
    parameters, vocabulary = model
    start, heat = max(vocabulary.find("\n"), 0), options.temperature
    prime = known_ids([options.prime], vocabulary, "the prime")
    ids = np.concatenate([[start], *prime], dtype=np.intp)
    drawn = sample(parameters, generator, prime=ids, temperature=heat, top_k=options.top_k)
    return (vocabulary[character] for character in islice(drawn, options.length))


def training_sample(model: Model, *, seed: int, step: int, length: int) -> str:
    """Return the sample that belongs to a step of a run, wherever it is drawn."""
    generator = np.random.default_rng([seed, 1, step])
    return "".join(draw(model, generator, Sampling(length)))


def for_reading(text: str) -> str:
    """Return a text as standard output may have it: a terminal is sent no control sequences."""
    return printable(text) if sys.stdout.isatty() else text
