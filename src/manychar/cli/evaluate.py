"""The command `evaluate`."""

import collections
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from manychar.cli.console import write
from manychar.cli.options import FILES, AsJson, ConnectTimeout, Key, Source, argument
from manychar.cli.run_setup import numerics_of
from manychar.cli.sample import weights_of
from manychar.network.endpoints import is_endpoint
from manychar.numerics.option import Option
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin
from manychar.processes.text_format import bits_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

TEXT = argument("TEXT", f"{FILES} the run's validation text (--validation).")
UNKNOWN = Option("What to do with characters that the model does not know.")
NAMED = 5


def evaluate(
    source: Source,
    text: Annotated[list[Path] | None, TEXT] = None,
    unknown: Annotated[Literal["refuse", "skip"], UNKNOWN] = "refuse",
    as_json: AsJson = False,
    connect_timeout: ConnectTimeout = 10.0,
    key: Key = None,
) -> None:
    """Print a model's loss on a text, in nats and bits a character."""
    pin("portable" if is_endpoint(source) else numerics_of(Path(source)))
    from manychar.numerics.evaluation import loss_of

    parameters, vocabulary = weights_of(source, key, connect_timeout)
    ids = _encode(text, vocabulary, unknown) if text else _validation_ids(Path(source))
    if len(ids) < 2:
        raise UserError(f"{len(ids)} characters: a loss needs at least 2")
    nats, characters = loss_of(parameters, ids), len(ids) - 1
    bits = bits_of(nats)
    if as_json:
        values = {"characters": characters, "nats": nats, "bits": bits}
        write(json.dumps(values) + "\n")
    else:
        write(f"{characters:,} characters: {nats:.4f} nats, {bits:.4f} bits a character\n")


def _validation_ids(path: Path) -> "NDArray[Any]":
    from manychar.storage.corpus_file import check_corpus
    from manychar.storage.run_directory import open_run

    if not path.is_dir():
        raise UserError(f"{path}: give a TEXT; only a run directory has a validation text")
    directory = open_run(path)
    if not directory.definition.validation:
        raise UserError(f"{path}: give a TEXT; this run has no validation text (--validation)")
    check_corpus(directory.path, directory.definition.corpus_sha256)
    return directory.streams()[1].validation_ids


def _encode(paths: list[Path], vocabulary: str, unknown: str) -> "NDArray[Any]":
    """Return the texts' ids, joined. Raises UserError for characters that are to be refused."""
    from manychar.numerics.corpus import encode_with
    from manychar.storage.corpus_file import read_text

    ids, strange = encode_with(vocabulary, b"".join(map(read_text, paths)).decode())
    if strange and unknown == "refuse":
        raise UserError(
            f"{_named(strange)}: the model does not know them; --unknown skip leaves them out"
        )
    if strange:
        logger.info(f"{_named(strange)}: unknown to the model, left out")
    return ids


def _named(strange: "collections.Counter[str]") -> str:
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c, _ in strange.most_common(NAMED))
    more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
    return f"{strange.total():,} characters, {shown}{more}"
