"""How fast texts of several kinds are read and encoded, and how fast their ids are checked."""

import gzip
import lzma
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from manychar.storage.corpus_file import check_corpus, read_corpus, write_corpus
from tests.benchmarks.plan import MissingError, Plan

LENGTH = 64_000_000  # bytes
SMALL = 1_000_000


def run(plan: Plan) -> Iterator[str]:
    """Yield the table, in MB of text a second."""
    yield "Texts, read twice, encoded and written; then their ids compared with the SHA-256:\n"
    rows = [
        "| text | MB | seconds | MB a second | checked, MB a second |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, path, length in _texts(plan.text.read_bytes(), plan.scratch):
        found = [_seconds(path, plan.scratch) for _ in range(plan.rounds)]
        encoding, checking = map(statistics.median, zip(*found, strict=True))
        megabytes = length / 1e6
        rows.append(
            f"| {name} | {megabytes:,.0f} | {encoding:.3f} | {megabytes / encoding:,.0f} |"
            f" {megabytes / checking:,.0f} |"
        )
    yield "\n".join(rows)


def _texts(sample: bytes, scratch: Path) -> Iterator[tuple[str, Path, int]]:
    """Yield (name, file, bytes of text): ASCII, the same packed, other UTF-8, a small one."""
    if not sample.isascii():
        raise MissingError("give an ASCII text as --text")
    ascii_text = (sample * (LENGTH // len(sample) + 1))[:LENGTH]
    letters = {each: chr(0x400 + each) for each in range(128)}
    other = sample.decode().translate(letters).encode()
    other = other * (LENGTH // len(other) + 1)
    for name, content, data in (
        ("ASCII", ascii_text, ascii_text),
        ("ASCII, .gz", ascii_text, gzip.compress(ascii_text, 6)),
        ("ASCII, .xz", ascii_text, lzma.compress(ascii_text, preset=1)),
        ("Cyrillic, two bytes a character", other, other),
        ("ASCII, small", ascii_text[:SMALL], ascii_text[:SMALL]),
    ):
        path = scratch / f"text{name[name.find('.') :] if '.' in name else ''}"
        path.write_bytes(data)
        yield name, path, len(content)
        path.unlink()


def _seconds(path: Path, scratch: Path) -> tuple[float, float]:
    """Return the seconds of reading and encoding a text, and of checking its ids."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        run, began = Path(name), time.monotonic()
        with read_corpus([path], run) as corpus:
            write_corpus(run, corpus)
        encoded = time.monotonic()
        check_corpus(run, corpus.sha256)
        return encoded - began, time.monotonic() - encoded
