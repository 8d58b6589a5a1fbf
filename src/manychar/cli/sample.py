"""The command `sample`; weights from a run directory, a checkpoint or a live server."""

import contextlib
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from manychar.cli.console import write
from manychar.cli.options import (
    Change,
    ConnectTimeout,
    Follow,
    Key,
    Length,
    Prime,
    PrimeFile,
    SampleSeed,
    Source,
    Temperature,
    TopK,
)
from manychar.network.endpoints import is_endpoint
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

if TYPE_CHECKING:
    from collections.abc import Generator

    from manychar.numerics.model import Parameters

logger = logging.getLogger(__name__)


def sample(
    source: Source,
    length: Length = 2000,
    prime: Prime = "",
    prime_file: PrimeFile = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    seed: SampleSeed = None,
    follow: Follow = False,
    change: Change = 0.05,
    connect_timeout: ConnectTimeout = 10.0,
    key: Key = None,
) -> None:
    """Sample text from a model, character by character."""
    pin("portable")
    import numpy as np

    from manychar.observability.model_source import draw, for_reading

    prime = _prime(prime, prime_file)
    chosen = secrets.randbelow(2**32) if seed is None else seed
    models = _models(source, key, connect_timeout, change=change if follow else None)
    with contextlib.closing(models):
        for heading, parameters, vocabulary in models:
            drawn = draw(
                parameters,
                vocabulary,
                np.random.default_rng([chosen, 2]),
                length=length,
                prime=prime,
                temperature=temperature,
                top_k=top_k,
            )
            write(heading + for_reading(prime))
            for character in drawn:
                write(for_reading(character))
            write("\n")
    if seed is None:
        logger.info(f"--seed {chosen}")


def weights_of(source: str, key: Path | None, connect_timeout: float) -> "tuple[Parameters, str]":
    """Return (parameters, vocabulary) of a run directory, a checkpoint, or a live server."""
    from manychar.network.client_identity import find_key
    from manychar.observability.model_source import load
    from manychar.observability.observer_client import first, models

    if is_endpoint(source):
        found = models(source, find_key(key), connect_timeout=connect_timeout)
        return first(found, source)[1]
    return load(Path(source))


def _prime(text: str, file: Path | None) -> str:
    """Return the text to continue. Raises UserError."""
    if text and file is not None:
        raise UserError("--prime and --prime-file: give one of them")
    if file is None:
        return text
    from manychar.storage.corpus_file import read_text

    return read_text(file).decode()


def _models(
    source: str, key: Path | None, connect_timeout: float, *, change: float | None
) -> "Generator[tuple[str, Parameters, str], None, None]":
    """Yield (heading, parameters, vocabulary): once, or of a server after each `change`."""
    if change is None:
        yield "", *weights_of(source, key, connect_timeout)
        return
    from manychar.network.client_identity import find_key
    from manychar.observability.observer_client import models

    if not is_endpoint(source):
        raise UserError(f"{source}: --follow needs a live server: tcp://HOST:PORT")
    found = models(source, find_key(key), connect_timeout=connect_timeout, change=change)
    with contextlib.closing(found):
        for step, (parameters, vocabulary) in found:
            yield f"--- step {step:,} ---\n", parameters, vocabulary
