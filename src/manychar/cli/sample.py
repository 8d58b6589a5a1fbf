"""The command `sample`; weights from a run directory, a checkpoint or a live server."""

import contextlib
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from manychar.cli.console import write
from manychar.cli.options import Key, Source
from manychar.fleet.launch_options import Sampling
from manychar.network.endpoints import is_endpoint
from manychar.numerics.option import Option
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

if TYPE_CHECKING:
    from manychar.numerics.model import Parameters

logger = logging.getLogger(__name__)


def sample(
    source: Source,
    follow: Annotated[bool, Option("Sample again each time a server's weights changed.")] = False,
    change: Annotated[float, Option("With --follow: relative change that counts.", least=0)] = 0.05,
    key: Key = None,
    **flags: Any,
) -> None:
    """Sample text from a model, character by character."""
    pin("portable")
    import numpy as np

    from manychar.network.client_identity import find_key
    from manychar.observability.model_source import draw, for_reading, models

    options = Sampling(**flags)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    prime = _prime(options)

    def show(parameters: "Parameters", vocabulary: str) -> None:
        drawn = draw(
            parameters,
            vocabulary,
            np.random.default_rng([seed, 2]),
            length=options.length,
            prime=prime,
            temperature=options.temperature,
            top_k=options.top_k,
        )
        write(for_reading(prime))
        for character in drawn:
            write(for_reading(character))
        write("\n")

    if not follow:
        show(*weights_of(source, key, options.connect_timeout))
    elif not is_endpoint(source):
        raise UserError(f"{source}: --follow needs a live server: tcp://HOST:PORT")
    else:
        timeout = options.connect_timeout
        found = models(source, find_key(key), connect_timeout=timeout, change=change)
        with contextlib.closing(found):
            for step, model in found:
                write(f"--- step {step:,} ---\n")
                show(*model)
    if options.seed is None:
        logger.info(f"--seed {seed}")


def _prime(options: Sampling) -> str:
    """Return the text to continue. Raises UserError."""
    if options.prime_file is None:
        return options.prime
    if options.prime:
        raise UserError("--prime and --prime-file: give one of them")
    from manychar.storage.corpus_file import read_text

    return read_text(Path(options.prime_file)).decode()


def weights_of(source: str, key: Path | None, connect_timeout: float) -> "tuple[Parameters, str]":
    """Return (parameters, vocabulary) of a run directory, a checkpoint, or a live server."""
    from manychar.network.client_identity import find_key
    from manychar.observability.model_source import load, models
    from manychar.observability.observer_client import first

    if is_endpoint(source):
        found = models(source, find_key(key), connect_timeout=connect_timeout)
        return first(found, source)[1]
    return load(Path(source))
