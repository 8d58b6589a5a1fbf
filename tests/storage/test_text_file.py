"""Texts as they are given: read in pieces of any size, decompressed, copied where once is all."""

import contextlib
import gzip
import hashlib
import importlib
import io
import lzma
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manychar.processes.errors import UserError
from manychar.storage import text_file
from manychar.storage.text_file import default_text, read_pieces, texts_of
from tests.conftest import Require
from tests.storage.given_texts import files, on_standard_input

WORDS = "naïve Σίσυφος 日本語 🜁🜂 to be\r\n\ufeff\u2028\x85\0" * 20


@pytest.fixture(params=[1, 2, 7, text_file.PIECE_BYTES], ids="{} bytes".format, autouse=True)
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have texts read in pieces of so many bytes."""
    monkeypatch.setattr(text_file, "PIECE_BYTES", request.param)


def read(*paths: Path) -> str:
    """Return the joined text, after it was read twice."""
    with texts_of(list(paths), paths[0].parent) as texts:
        once, again = hashlib.sha256(), hashlib.sha256()
        text = "".join(read_pieces(texts, "reading", once.update))
        assert "".join(read_pieces(texts, "reading", again.update)) == text
    assert once.hexdigest() == again.hexdigest() == hashlib.sha256(text.encode()).hexdigest()
    return text


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    assert read(*files(tmp_path, WORDS.encode())) == WORDS


def test_several_are_joined_in_their_order(tmp_path: Path) -> None:
    one, two, three = files(tmp_path, b"ab\n", b"", "é\r\n".encode())
    assert read(three, one, two, one) == "é\r\nab\nab\n"


def test_how_far_it_is_is_counted_over_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def recorded(what: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: shown.append((done, total))

    monkeypatch.setattr(text_file, "work_progress", recorded)
    with texts_of(files(tmp_path, b"a" * 100, b"b" * 50), tmp_path) as texts:
        assert len("".join(read_pieces(texts, "reading"))) == 150
    assert shown == sorted(shown)
    assert shown[-1] == (150, 150)


def test_no_path_is_the_language_reference() -> None:
    with texts_of([], Path()) as (text,):
        assert "".join(read_pieces([text], "reading")) == default_text()
        assert "pydoc_data.topics" in text.name
    assert "class" in default_text()


def zstd(data: bytes) -> bytes:
    package = "compression" if sys.version_info >= (3, 14) else "backports"
    compressed: bytes = importlib.import_module(f"{package}.zstd").compress(data)
    return compressed


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.fixture(params=COMPRESSED)
def compress(request: pytest.FixtureRequest, require: Require) -> Callable[[bytes], bytes]:
    try:
        COMPRESSED[request.param](b"")
    except ModuleNotFoundError as error:
        require(False, f"needs {error.name}")  # noqa: FBT003
    return COMPRESSED[request.param]


class TestCompressed:
    def test_a_file_is_read_as_its_content(
        self, tmp_path: Path, compress: Callable[[bytes], bytes]
    ) -> None:
        half, other = WORDS[:100].encode(), WORDS[100:].encode()
        assert read(*files(tmp_path, compress(half) + compress(other), b"more")) == WORDS + "more"

    @pytest.mark.parametrize("padding", [b"", bytes(4)], ids=len)
    def test_what_follows_it_is_read_or_refused(
        self, tmp_path: Path, compress: Callable[[bytes], bytes], padding: bytes
    ) -> None:
        again = compress(WORDS.encode())
        whole = compress(b"first ") + padding
        if not padding or compress is not zstd:  # it has none
            assert read(*files(tmp_path, whole + again)) == "first " + WORDS
        damaged = bytearray(again)
        damaged[1] ^= 1
        for more in (bytes(damaged), again[:7], b"garbage"):
            (path,) = files(tmp_path, whole + more)
            with pytest.raises(UserError, match=f"^{path}: truncated or damaged"):
                read(path)

    def test_standard_input_is_too(
        self, tmp_path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_standard_input(monkeypatch, compress(WORDS.encode()))
        assert read(Path("-")) == WORDS

    def test_every_truncated_one_is_refused(
        self, tmp_path: Path, compress: Callable[[bytes], bytes]
    ) -> None:
        whole = compress(WORDS.encode())
        for length in range(2, len(whole)):
            (path,) = files(tmp_path, whole[:length])
            with pytest.raises(UserError, match=f"^{path}: (truncated or damaged|not UTF-8)"):
                read(path)

    @pytest.mark.parametrize(
        ("suffix", "magic"),
        [(".gz", text_file.GZIP), (".XZ", text_file.XZ), (".zst", text_file.ZSTD)],
    )
    def test_by_its_name_it_begins_as_an_archive(
        self, tmp_path: Path, suffix: str, magic: bytes
    ) -> None:
        path = tmp_path / f"t{suffix}"
        for content in (*(magic[:length] for length in range(len(magic))), b"a text, renamed"):
            path.write_bytes(content)
            said = f"^{path}: truncated or no {suffix.lower()} archive; get it anew$"
            with pytest.raises(UserError, match=said):
                read(*files(tmp_path, b"a text"), path)

    def test_a_damaged_one_is_refused(
        self, tmp_path: Path, compress: Callable[[bytes], bytes]
    ) -> None:
        whole = compress(WORDS.encode())
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 255
        (path,) = files(tmp_path, bytes(damaged))
        with pytest.raises(UserError, match=f"^{path}: (truncated or damaged|not UTF-8)"):
            read(path)

    def test_what_it_holds_has_to_be_utf_8(
        self, tmp_path: Path, compress: Callable[[bytes], bytes]
    ) -> None:
        (path,) = files(tmp_path, compress(b"abc\xff"))
        with pytest.raises(UserError, match=f"^{path}: not UTF-8: byte 0xff at offset 3;"):
            read(path)


def test_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(WORDS.encode()))
    whole[-8] ^= 1
    (path,) = files(tmp_path, bytes(whole))
    with pytest.raises(UserError, match=f"^{path}: truncated or damaged: CRC check failed"):
        read(path)


def test_zstandard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression", "compression.zstd", "backports", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (path,) = files(tmp_path, text_file.ZSTD + b"more")
    with pytest.raises(
        UserError, match=rf"^{path} needs \w+\.zstd, .*pip install 'manychar\[zstd\]'"
    ):
        read(path)


class TestReadOnce:
    def test_standard_input(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        on_standard_input(monkeypatch, "à\r\n".encode())
        (path,) = files(tmp_path, b"first ")
        assert read(path, Path("-")) == "first à\r\n"

    def test_standard_input_twice_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"^- is given twice: "):
            read(Path("-"), Path("text"), Path("-"))

    def test_a_pipe_with_a_name(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_bytes, args=(WORDS.encode(),))
        writer.start()
        assert read(path) == WORDS
        writer.join()
        assert list(tmp_path.iterdir()) == [path]

    def test_its_copy_takes_no_room_afterwards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_standard_input(monkeypatch, b"abc")
        with texts_of([Path("-")], tmp_path) as (text,):
            assert text.path.stat().st_nlink == 0
            assert not list(tmp_path.iterdir())
        assert not text.path.exists()

    def test_where_there_is_no_room_for_a_copy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_standard_input(monkeypatch, b"abc")
        monkeypatch.setattr(tempfile, "TemporaryFile", Full)
        with pytest.raises(UserError, match=r"^standard input: no space left on device; make room"):
            read(Path("-"))


class Full(io.BytesIO):
    """A file on a disk without room: what it refuses to write it refuses when it is closed, too."""

    def __init__(self, dir: Path) -> None:  # noqa: A002
        super().__init__()

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        super().close()
        raise OSError(28, "No space left on device")
