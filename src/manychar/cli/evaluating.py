"""The command that judges: evaluate."""

import collections
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from manychar.cli.console import write
from manychar.cli.options import Key, Patience
from manychar.cli.run_setup import numerics_of, source_of
from manychar.network.endpoints import is_endpoint
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


NAMED = 5


def evaluate(
    source: Annotated[
        str, typer.Argument(help="A run directory, a checkpoint, or a live server's endpoint.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="TEXT",
            help="UTF-8 text files, joined; - is standard input."
            " Without TEXT: what the run directory holds out (--validation).",
            show_default=False,
        ),
    ] = None,
    unknown: Annotated[
        Literal["refuse", "skip"],
        typer.Option(
            help="Characters that the model does not know: refuse the text, or skip them."
        ),
    ] = "refuse",
    as_json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
    patience: Patience = 10.0,
    key: Key = None,
) -> None:
    """Say how well a model predicts a text: its loss in nats and bits a character."""
    pin("portable" if is_endpoint(source) else numerics_of(Path(source)))
    from manychar.numerics.evaluation import evaluate as judge

    parameters, vocabulary = source_of(source, key, patience=patience)
    ids = _read(text, vocabulary, unknown) if text else _held_out(source)
    if len(ids) < 2:
        raise UserError(f"{len(ids)} characters to judge by: it takes at least 2")
    found = judge(parameters, ids)
    values = {
        "characters": found.characters,
        "nats": found.nats_a_character,
        "bits": found.bits_a_character,
    }
    if as_json:
        write(json.dumps(values) + "\n")
        return
    write(
        f"{found.characters:,} characters: {found.nats_a_character:.4f} nats,"
        f" {found.bits_a_character:.4f} bits a character\n"
    )


def _held_out(source: str) -> "NDArray[Any]":
    from manychar.storage.corpus_file import check_corpus
    from manychar.storage.run_directory import open_run

    if not Path(source).is_dir():
        raise UserError(f"{source}: give a TEXT; only a run directory has one of its own")
    directory = open_run(Path(source))
    if not directory.definition.validation:
        raise UserError(f"{source}: give a TEXT; this run holds nothing out (--validation)")
    check_corpus(directory.path, directory.definition.corpus_sha256)
    return directory.streams()[1].validation_ids


def _read(paths: list[Path], vocabulary: str, unknown: str) -> "NDArray[Any]":
    """Return the texts' ids, joined. Raises UserError for characters that are to be refused."""
    from manychar.numerics.corpus import encode_with
    from manychar.storage.corpus_file import read_text

    ids, strange = encode_with(vocabulary, b"".join(map(read_text, paths)).decode())
    if strange and unknown == "refuse":
        raise UserError(
            f"{_named(strange)}: the model does not know them; --unknown skip leaves them out"
        )
    if strange:
        logger.info(f"{_named(strange)}: not known to the model, and left out")
    return ids


def _named(strange: "collections.Counter[str]") -> str:
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c, _ in strange.most_common(NAMED))
    more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
    return f"{strange.total():,} characters, {shown}{more}"
