"""The command `evaluate`."""

import json
import math
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated, Literal

from manychar.cli.console import write
from manychar.cli.options import FILES, AsJson, ConnectTimeout, Key, Source, argument
from manychar.cli.run_setup import numerics_of
from manychar.network.endpoints import is_endpoint
from manychar.numerics.option import Option, counted
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

TEXT = argument("TEXT", f"{FILES} the run's validation text (--validation).", Path)
NO_VALIDATION_TEXT = "it has no validation text (--validation)"
UNKNOWN = Option("What to do with characters that the model does not know.")


def evaluate(
    source: Source,
    text: Annotated[list[Path] | None, TEXT] = None,
    unknown: Annotated[Literal["refuse", "skip"], UNKNOWN] = "refuse",
    as_json: AsJson = False,
    connect_timeout: ConnectTimeout = 10.0,
    key: Key = None,
) -> None:
    """Print a model's loss on a text, in nats and bits a character."""
    pin(numerics_of(Path(source)))
    from manychar.numerics.corpus import id_dtype
    from manychar.numerics.evaluation import loss_of
    from manychar.observability.model_source import load
    from manychar.storage.corpus_file import check_corpus, known_ids, map_temporarily
    from manychar.storage.run_directory import open_run
    from manychar.storage.text_file import read_pieces, texts_of

    parameters, vocabulary = load(source, key, connect_timeout=connect_timeout)
    if text:
        directory = Path(gettempdir())
        with texts_of(text, directory) as texts:
            read, name = read_pieces(texts, "reading"), ", ".join(each.name for each in texts)
            pieces = known_ids(read, vocabulary, name, unknown=unknown)
            ids = map_temporarily(pieces, id_dtype(len(vocabulary)), directory)
        if len(ids) < 2:
            has = counted(len(ids), "character")
            raise UserError(f"{name}: {has}: a loss needs at least 2")
    else:
        run = open_run(Path(source)) if Path(source).is_dir() else None
        if run is None or not run.definition.validation:
            has = "a server does not send its text" if is_endpoint(source) else NO_VALIDATION_TEXT
            raise UserError(f"{source}: give a text: {has}")
        check_corpus(run.path, run.definition.corpus_sha256)
        ids = run.corpus()[1].validation_ids
    nats, characters = loss_of(parameters, ids), len(ids) - 1
    bits = nats / math.log(2)
    if as_json:
        values = {"characters": characters, "nats": nats, "bits": bits}
        write(json.dumps(values) + "\n")
    else:
        of = counted(characters, "character")
        write(f"{of}: {nats:#.5g} nats, {bits:#.5g} bits a character\n")
