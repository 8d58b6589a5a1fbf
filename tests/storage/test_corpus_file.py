"""Texts in any language become ids, byte for byte; they are encoded once, and mapped."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from manychar.processes.errors import UserError
from manychar.storage import corpus_file, text_file
from manychar.storage.corpus_file import (
    Corpus,
    check_corpus,
    map_corpus,
    map_temporarily,
    read_corpus,
    write_corpus,
)
from manychar.storage.text_file import default_text
from tests.encoding import encode
from tests.storage.given_texts import corpus_in, corpus_of, files


def written(directory: Path, corpus: Corpus) -> str:
    """Write a corpus, check what is there, and return its text."""
    write_corpus(directory, corpus)
    check_corpus(directory, corpus.sha256)
    vocabulary, ids = map_corpus(directory)
    assert vocabulary == corpus.vocabulary
    assert len(ids) == corpus.characters
    return "".join(vocabulary[i] for i in ids)


@pytest.mark.parametrize("piece", [1, 5, text_file.PIECE_BYTES])
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
def test_every_character_is_kept(
    tmp_path: Path, text: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "PIECE_BYTES", piece)
    monkeypatch.setattr(corpus_file, "CHECKED_AT_ONCE", piece)
    corpus = corpus_in(*files(tmp_path, text.encode()))
    assert written(tmp_path, corpus) == text
    assert list(corpus.vocabulary) == sorted(set(text))
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_several_are_joined_in_their_order(tmp_path: Path) -> None:
    one, two, three = files(tmp_path, b"ab\n", b"", "é\r\n".encode())
    corpus = corpus_in(three, one, two, one)
    assert written(tmp_path, corpus) == "é\r\nab\nab\n"
    assert corpus.sha256 == hashlib.sha256("é\r\nab\nab\n".encode()).hexdigest()
    assert all(str(path) in corpus.source for path in (one, two, three))


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
    good, bad = files(tmp_path, b"good", content)
    with pytest.raises(UserError, match=f"{bad}: not UTF-8: byte {byte} at offset {offset};"):
        corpus_in(good, bad)


def test_a_character_is_not_joined_from_two_files(tmp_path: Path) -> None:
    half, other = files(tmp_path, "é".encode()[:1], "é".encode()[1:])
    with pytest.raises(UserError, match=f"{half}: not UTF-8"):
        corpus_in(half, other)


def test_what_is_empty_missing_or_no_file(tmp_path: Path) -> None:
    empty, also = files(tmp_path, b"", b"")
    with pytest.raises(UserError, match="the text is empty"):
        corpus_in(empty, also)
    with pytest.raises(UserError, match="nowhere: no such file"):
        corpus_in(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a directory"):
        corpus_in(tmp_path)


def test_the_default_is_the_language_reference(tmp_path: Path) -> None:
    with read_corpus([], tmp_path) as corpus:
        assert written(tmp_path, corpus) == default_text()
    assert corpus.characters > 300_000


@pytest.mark.parametrize("piece", [3, text_file.PIECE_BYTES])
@pytest.mark.parametrize("content", [b"abd", b"ab", b"abca", "ab\u00e9".encode(), b"ab\xff", b""])
def test_one_that_changes_between_the_two_readings_is_refused(
    tmp_path: Path, content: bytes, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "PIECE_BYTES", piece)
    (path,) = files(tmp_path, b"abc")
    (tmp_path / "again").mkdir()
    corpus = corpus_in(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: (changed while|not UTF-8)"):
        write_corpus(tmp_path, corpus)
    path.unlink()
    with pytest.raises(UserError, match=f"^{path}: no such file"):
        write_corpus(tmp_path / "again", corpus)


@pytest.mark.parametrize(
    ("characters", "dtype"),
    [(1, "u1"), (256, "u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")],
)
def test_in_the_run_directory(tmp_path: Path, characters: int, dtype: str) -> None:
    text = "".join(map(chr, range(0xE000, 0xE000 + min(characters, 0x2000))))
    text += "".join(map(chr, range(0x10000, 0x10000 + characters - len(text))))
    corpus = corpus_of(text[::-1])
    write_corpus(tmp_path, corpus)
    found, mapped = map_corpus(tmp_path)
    assert found == corpus.vocabulary == text
    assert isinstance(mapped.base, np.memmap)
    assert mapped.dtype == np.dtype(dtype)
    assert mapped.tobytes() == encode(text[::-1])[1].tobytes()
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    check_corpus(tmp_path, corpus.sha256)
    with pytest.raises(UserError, match="altered"):
        check_corpus(tmp_path, "0" * 64)


@pytest.mark.parametrize("text", ["to be or not to be", "être ou ne pas être"])
def test_an_altered_one_is_noticed(tmp_path: Path, text: str) -> None:
    corpus = corpus_of(text)
    digest = corpus.sha256
    write_corpus(tmp_path, corpus)
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


def test_ids_that_are_mapped_for_a_while(tmp_path: Path) -> None:
    pieces = (np.array(each, "<u2") for each in ([1, 2], [], [300]))
    ids = map_temporarily(pieces, "<u2", tmp_path)
    assert ids.tolist() == [1, 2, 300]
    assert isinstance(ids.base, np.memmap)
    assert not list(tmp_path.iterdir())
    assert len(map_temporarily(iter(()), "u1", tmp_path)) == 0
    with pytest.raises(UserError, match=r"nowhere: no such file .*; \$TMPDIR names"):
        map_temporarily(iter(()), "u1", tmp_path / "nowhere")
