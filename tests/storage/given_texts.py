"""Texts for the tests of what is stored."""

import atexit
import hashlib
import io
import os
import sys
import tempfile
from pathlib import Path

import pytest

from manychar.storage.corpus_file import Corpus, read_corpus

SCRATCH = tempfile.TemporaryDirectory(prefix="manychar-texts-")
atexit.register(SCRATCH.cleanup)
NO_DEVICE = os.open(SCRATCH.name, os.O_RDONLY)


def corpus_of(text: str) -> Corpus:
    """Return the corpus of a text."""
    data = text.encode()
    path = Path(SCRATCH.name) / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return corpus_in(path)


def corpus_in(*paths: Path) -> Corpus:
    """Return the corpus of files that were read once."""
    with read_corpus(list(paths), Path()) as corpus:
        return corpus


def files(directory: Path, *contents: bytes) -> list[Path]:
    """Write files, and return their paths."""
    paths = [directory / f"text-{i}" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def on_standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Have these bytes come on standard input."""

    class Given(io.BytesIO):
        def fileno(self) -> int:
            return NO_DEVICE

    class Stdin:
        buffer = Given(data)

    monkeypatch.setattr(sys, "stdin", Stdin)
