"""Reads texts as one corpus; writes its ids, and maps them into memory."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from manychar.numerics.corpus import CharacterSet, Encoder, decode, id_dtype
from manychar.numerics.model import Model, Parameters
from manychar.numerics.option import counted
from manychar.processes.errors import UserError, because, code_of, user_errors
from manychar.processes.log import logger
from manychar.processes.work_progress import work_progress
from manychar.storage.atomic_files import unnamed_file, write_file
from manychar.storage.text_file import Text, read_pieces, texts_of

CORPUS_NAME = "corpus.bin"
VOCABULARY_NAME = "vocabulary.json"
CHECKED_AT_ONCE = 2**18  # characters
UNKNOWN_SHOWN = 5  # characters


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A text that was read once: `sha256` is that of its bytes, `source` its name for a person."""

    source: str
    sha256: str
    vocabulary: str
    characters: int
    texts: list[Text]
    initial_weights: Parameters | None = None  # of the model that the run starts from


def known_ids(
    pieces: Iterable[str], vocabulary: str, what: str, *, unknown: str = ""
) -> Iterator[NDArray[Any]]:
    """Yield the ids of a text in pieces; `what` is its name in messages.

    Unknown characters are left out and logged at the end, by "skip"; else, and where all are
    unknown, they raise UserError.
    """
    encoder, known = Encoder(vocabulary), 0
    for ids in map(encoder.encode, pieces):
        known += len(ids)
        yield ids
    if missing := encoder.unknown:
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c, _ in missing.most_common(UNKNOWN_SHOWN))
        more = f" and {len(missing) - UNKNOWN_SHOWN} more" if len(missing) > UNKNOWN_SHOWN else ""
        hint = " (--unknown=skip leaves them out)" if unknown == "refuse" and known else ""
        words = f"{counted(missing.total(), 'character')} of {what}{hint}: {shown}{more}"
        if unknown and not known:
            raise UserError(f"the model knows none of the {words}; give a text of its characters")
        if unknown != "skip":
            raise UserError(f"the model does not know {words}")
        logger.info(f"the model does not know {words}; skipped")


@contextlib.contextmanager
def read_corpus(
    paths: list[Path], directory: Path, model: Model | None = None, unknown: str = "refuse"
) -> Iterator[Corpus]:
    """Yield the corpus of texts, of the characters that a model knows. Raises UserError."""
    with contextlib.ExitStack() as stack:
        texts = stack.enter_context(texts_of(paths, directory))
        source = ", ".join(text.name for text in texts)
        weights, known = model or (None, "")
        if weights is not None:
            ids = known_ids(read_pieces(texts, "reading"), known, source, unknown=unknown)
            copy = stack.enter_context(unnamed_file(directory, (decode(known, p) for p in ids)))
            texts = [Text(source, Path(f"/dev/fd/{copy.fileno()}"), copy.tell())]
        hashed, found = hashlib.sha256(), CharacterSet()
        for piece in read_pieces(texts, "reading", hashed.update):
            found.add(piece)
        if not found.length:
            raise UserError(f"{source}: the text is empty; give a text with some characters in it")
        vocabulary = known or found.vocabulary
        yield Corpus(source, hashed.hexdigest(), vocabulary, found.length, texts, weights)


def write_corpus(directory: Path, corpus: Corpus) -> None:
    """Write a run's ids and vocabulary. Raises OSError, and UserError where the text changed."""
    hashed, encoder = hashlib.sha256(), Encoder(corpus.vocabulary)
    pieces = read_pieces(corpus.texts, "encoding", hashed.update)
    write_file(directory / CORPUS_NAME, (encoder.encode(piece).tobytes() for piece in pieces))
    if hashed.hexdigest() != corpus.sha256:
        raise UserError(f"{corpus.source}: changed while it was read; give a text that is complete")
    vocabulary = json.dumps(list(corpus.vocabulary), ensure_ascii=False)
    write_file(directory / VOCABULARY_NAME, [vocabulary.encode() + b"\n"])


def map_corpus(directory: Path) -> tuple[str, NDArray[Any]]:
    """Return (vocabulary, ids) of a run directory, the ids memory-mapped, read-only.

    Raises UserError where the files are missing or do not fit together.
    """
    try:
        vocabulary = "".join(json.loads((directory / VOCABULARY_NAME).read_bytes()))
        dtype = id_dtype(len(vocabulary))
        # As a plain array: numpy takes longer over each piece of a memmap than it takes to copy it.
        ids = np.asarray(np.memmap(directory / CORPUS_NAME, dtype=dtype, mode="r"))
    except OSError as error:
        where = error.filename or directory
        raise UserError(f"{where}: {because(error)}", code=code_of(error)) from None
    except (ValueError, TypeError):
        raise UserError(f"{directory}: {VOCABULARY_NAME} or {CORPUS_NAME} is damaged") from None
    return vocabulary, ids


def map_temporarily(
    pieces: Iterable[NDArray[Any]], dtype: DTypeLike, directory: Path
) -> NDArray[Any]:
    """Return ids that come in pieces, mapped from a file without a name. Raises UserError."""
    with (
        user_errors(directory, "$TMPDIR names another one"),
        unnamed_file(directory, (piece.tobytes() for piece in pieces)) as file,
    ):
        ids = np.memmap(file, dtype, mode="r") if file.tell() else np.zeros(0, dtype)
        return np.asarray(ids)


def check_corpus(directory: Path, sha256: str) -> None:
    """Compare the ids with the text's SHA-256. Raises UserError if they were altered."""
    vocabulary, ids = map_corpus(directory)
    hashed = hashlib.sha256()
    try:
        with work_progress(f"checking {directory / CORPUS_NAME}", draw=False) as progress:
            for start in range(0, len(ids), CHECKED_AT_ONCE):
                hashed.update(decode(vocabulary, ids[start : start + CHECKED_AT_ONCE]))
                progress(start * ids.itemsize, ids.nbytes)
    except (IndexError, UnicodeError):
        raise UserError(f"{directory}: {VOCABULARY_NAME} or {CORPUS_NAME} is altered") from None
    if hashed.hexdigest() != sha256:
        raise UserError(f"{directory / CORPUS_NAME}: altered: it is not the text of config.json")
