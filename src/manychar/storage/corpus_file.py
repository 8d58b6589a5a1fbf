"""Reads text files as one text; writes the encoded corpus and maps it into memory."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.corpus import encode, id_dtype
from manychar.processes.errors import UserError, because
from manychar.storage.atomic_files import write_file

CORPUS_NAME = "corpus.bin"
VOCABULARY_NAME = "vocabulary.json"
CHECKED_AT_ONCE = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A text as ids: `sha256` is that of its original bytes, `source` its name for a person."""

    source: str
    sha256: str
    vocabulary: str
    ids: NDArray[Any]


def read_corpus(paths: list[Path]) -> Corpus:
    """Read the texts, joined in order; `-` is standard input, no path the default corpus.

    Raises UserError for a file that cannot be read, is empty, or is not UTF-8.
    """
    source = ", ".join(map(str, paths)) or "Python's language reference (pydoc_data.topics)"
    data = b"".join(map(read_text, paths)) if paths else default_text().encode()
    if not data:
        raise UserError(f"{source}: the text is empty; give a text with some characters in it")
    vocabulary, ids = encode(data.decode())
    return Corpus(source, hashlib.sha256(data).hexdigest(), vocabulary, ids)


def default_text() -> str:
    """Return the language reference that ships inside CPython, topic by topic."""
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def read_text(path: Path) -> bytes:
    """Return the bytes of a UTF-8 text. Raises UserError where there is none."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: {because(error)}; give the path of a text file") from None
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: not UTF-8: byte {data[error.start]:#04x} at offset {error.start:,};"
            " convert the text to UTF-8 first"
        ) from None
    return data


def write_corpus(directory: Path, corpus: Corpus) -> None:
    """Write the ids and the vocabulary into a run directory. Raises OSError."""
    write_file(directory / CORPUS_NAME, corpus.ids.tobytes())
    vocabulary = json.dumps(list(corpus.vocabulary), ensure_ascii=False)
    write_file(directory / VOCABULARY_NAME, vocabulary.encode() + b"\n")


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
        raise UserError(f"{error.filename or directory}: {because(error)}") from None
    except (ValueError, TypeError):
        raise UserError(f"{directory}: {VOCABULARY_NAME} or {CORPUS_NAME} is damaged") from None
    return vocabulary, ids


def check_corpus(directory: Path, sha256: str) -> None:
    """Compare the encoded corpus with the text's SHA-256. Raises UserError if it was altered."""
    vocabulary, ids = map_corpus(directory)
    code_points = np.array([ord(character) for character in vocabulary], dtype="<u4")
    hashed = hashlib.sha256()
    try:
        for start in range(0, len(ids), CHECKED_AT_ONCE):
            part = code_points[ids[start : start + CHECKED_AT_ONCE]]
            hashed.update(part.tobytes().decode("utf-32-le").encode())
    except (IndexError, UnicodeError):
        raise UserError(f"{directory}: {VOCABULARY_NAME} or {CORPUS_NAME} is altered") from None
    if hashed.hexdigest() != sha256:
        raise UserError(f"{directory / CORPUS_NAME}: altered: it is not the text of config.json")
