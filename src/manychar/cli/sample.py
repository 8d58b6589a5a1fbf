"""The command `sample`."""

import contextlib
import dataclasses
import itertools
import secrets
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated, Any

from manychar.cli.console import queued_output, write
from manychar.cli.options import Key, Source
from manychar.numerics.option import Option
from manychar.observability.sampling_options import Sampling
from manychar.processes.errors import UserError
from manychar.processes.log import logger


def sample(
    source: Source,
    follow: Annotated[bool, Option("Sample again each time a server's weights changed.")] = False,
    key: Key = None,
    **flags: Any,
) -> None:
    """Sample text from a model, character by character."""
    import numpy as np

    from manychar.numerics.model import Model
    from manychar.observability.model_source import draw, for_reading, load, models
    from manychar.storage.text_file import read_pieces, texts_of

    options = Sampling(**flags)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    if options.prime_file is not None:
        if options.prime:
            raise UserError("--prime and --prime-file: give one of them")
        with texts_of([Path(options.prime_file)], Path(gettempdir())) as texts:
            prime = "".join(read_pieces(texts, "reading"))
        options = dataclasses.replace(options, prime=prime)

    def drawn(model: Model) -> Iterator[str]:
        characters = draw(model, np.random.default_rng([seed, 2]), options)
        return map(for_reading, itertools.chain([options.prime], characters, ["\n"]))

    if not follow:
        for piece in drawn(load(source, key, connect_timeout=options.connect_timeout)):
            write(piece)
    elif Path(source).is_file():
        raise UserError(f"{source}: --follow needs a live server: its endpoint or run directory")
    else:
        found = models(source, key, connect_timeout=options.connect_timeout)
        with contextlib.closing(found), queued_output():
            for step, model in found:
                write(f"--- step {step:,} ---\n{''.join(drawn(model))}")
    if options.seed is None:
        logger.info(f"--seed {seed}")
