"""Text files in any language become one text, byte for byte; it is encoded once, and mapped."""

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest

from manychar.numerics.corpus import encode
from manychar.processes.errors import UserError
from manychar.storage.corpus_file import (
    Corpus,
    check_corpus,
    default_text,
    map_corpus,
    read_corpus,
    write_corpus,
)


def text_of(corpus: Corpus) -> str:
    return "".join(corpus.vocabulary[i] for i in corpus.ids)


def given(tmp_path: Path, *contents: bytes) -> list[Path]:
    paths = [tmp_path / f"text-{i}" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "naïve café",
        "Τον Σίσυφον, ὄγκον",
        "日本語の文章、そして更に。",
        "שלום עולם مرحبا",
        "🜁🜂🜃 \U0010ffff e\u0301 \u00e9",
        "one\r\ntwo\rthree\nfour\x0b\x0c\x1c\u2028\u0085",
        "\ufeffwith a mark",
        "\0\x01\x7f",
    ],
)
def test_every_character_is_kept(tmp_path: Path, text: str) -> None:
    corpus = read_corpus(given(tmp_path, text.encode()))
    assert text_of(corpus) == text
    assert list(corpus.vocabulary) == sorted(set(text))
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_several_are_joined_in_their_order(tmp_path: Path) -> None:
    one, two, three = given(tmp_path, b"ab\n", b"", "é\r\n".encode())
    corpus = read_corpus([three, one, two, one])
    assert text_of(corpus) == "é\r\nab\nab\n"
    assert corpus.sha256 == hashlib.sha256("é\r\nab\nab\n".encode()).hexdigest()
    assert all(str(path) in corpus.source for path in (one, two, three))


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO("à\r\n".encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    (path,) = given(tmp_path, b"first ")
    assert text_of(read_corpus([path, Path("-")])) == "first à\r\n"


@pytest.mark.parametrize(
    ("content", "offset", "byte"),
    [
        (b"\xff", "0", "0xff"),
        (b"abc\xc3", "3", "0xc3"),
        ("é".encode() * 1000 + b"\x80", "2,000", "0x80"),
        (b"\xed\xa0\x80", "0", "0xed"),
        (b"ab\xc0\x80", "2", "0xc0"),
        ("é".encode("utf-16"), "0", "0xff"),
    ],
)
def test_what_is_not_utf_8(tmp_path: Path, content: bytes, offset: str, byte: str) -> None:
    good, bad = given(tmp_path, b"good", content)
    with pytest.raises(UserError, match=f"{bad}: not UTF-8: byte {byte} at offset {offset};"):
        read_corpus([good, bad])


def test_a_character_is_not_joined_from_two_files(tmp_path: Path) -> None:
    half, other = given(tmp_path, "é".encode()[:1], "é".encode()[1:])
    with pytest.raises(UserError, match=f"{half}: not UTF-8"):
        read_corpus([half, other])


def test_what_is_empty_missing_or_no_file(tmp_path: Path) -> None:
    empty, also = given(tmp_path, b"", b"")
    with pytest.raises(UserError, match="the text is empty"):
        read_corpus([empty, also])
    with pytest.raises(UserError, match="nowhere: no such file"):
        read_corpus([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="is a directory"):
        read_corpus([tmp_path])


def test_the_default_is_the_language_reference() -> None:
    corpus = read_corpus([])
    assert text_of(corpus) == default_text()
    assert len(corpus.ids) > 300_000
    assert "class" in default_text()
    assert "pydoc_data.topics" in corpus.source


@pytest.mark.parametrize(
    ("characters", "dtype"),
    [(1, "u1"), (256, "u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")],
)
def test_in_the_run_directory(tmp_path: Path, characters: int, dtype: str) -> None:
    text = "".join(map(chr, range(0xE000, 0xE000 + min(characters, 0x2000))))
    text += "".join(map(chr, range(0x10000, 0x10000 + characters - len(text))))
    vocabulary, ids = encode(text[::-1])
    digest = hashlib.sha256(text[::-1].encode()).hexdigest()
    write_corpus(tmp_path, Corpus("it", digest, vocabulary, ids))
    found, mapped = map_corpus(tmp_path)
    assert found == vocabulary == text
    assert isinstance(mapped.base, np.memmap)
    assert mapped.dtype == np.dtype(dtype)
    assert mapped.tobytes() == ids.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    check_corpus(tmp_path, digest)
    with pytest.raises(UserError, match="altered"):
        check_corpus(tmp_path, "0" * 64)


def test_an_altered_one_is_noticed(tmp_path: Path) -> None:
    text = "to be or not to be"
    vocabulary, ids = encode(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_corpus(tmp_path, Corpus("it", digest, vocabulary, ids))
    whole = (tmp_path / "corpus.bin").read_bytes()
    for at in range(len(whole)):
        for bit in (1, 128):
            altered = bytearray(whole)
            altered[at] ^= bit
            (tmp_path / "corpus.bin").write_bytes(altered)
            with pytest.raises(UserError, match="altered"):
                check_corpus(tmp_path, digest)
    for length in range(len(whole)):
        (tmp_path / "corpus.bin").write_bytes(whole[:length])
        with pytest.raises(UserError):
            check_corpus(tmp_path, digest)
