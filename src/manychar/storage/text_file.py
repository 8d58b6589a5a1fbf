"""Texts as they are given: UTF-8 files, plain or compressed, and standard input; read in pieces."""

import codecs
import contextlib
import dataclasses
import gzip
import importlib
import io
import itertools
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any, BinaryIO

from manychar.processes.errors import UserError, needing, user_errors
from manychar.processes.log import logger
from manychar.processes.work_progress import work_progress
from manychar.storage.atomic_files import unnamed_file

PIECE_BYTES = 2**16
GIVE = "give the path of a text file"
GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"  # no UTF-8 text begins so
ARCHIVES = {".gz": GZIP, ".xz": XZ, ".zst": ZSTD}


@dataclasses.dataclass(frozen=True)
class Text:
    """A text that can be read more than once: its name in messages, its file, the file's size."""

    name: str
    path: Path
    size: int

    def pieces(self, on_bytes: Callable[[bytes], object]) -> Iterator[tuple[str, int]]:
        """Yield (piece, bytes of the file read by then); the text's bytes go to `on_bytes`.

        Raises UserError where the text cannot be read, is damaged, or is not UTF-8.
        """
        decoder, end = codecs.getincrementaldecoder("utf-8")(), 0
        with user_errors(self.name, GIVE), self.path.open("rb") as stored:
            content, damage = _content(stored, self.name)
            try:
                for read in itertools.chain(content, [b""]):
                    on_bytes(read)
                    end += len(read)
                    yield decoder.decode(read, final=not read), stored.tell()
            except UnicodeDecodeError as error:
                byte, offset = error.object[error.start], end - len(error.object) + error.start
                what = f"not UTF-8: byte {byte:#04x} at offset {offset:,}"
                raise UserError(f"{self.name}: {what}; convert the text to UTF-8 first") from None
            except (EOFError, gzip.BadGzipFile, damage) as error:
                damaged = f"{self.name}: truncated or damaged: {error}; get it anew"
                raise UserError(damaged) from None


def read_pieces(
    texts: list[Text], doing: str, on_bytes: Callable[[bytes], object] = len
) -> Iterator[str]:
    """Yield the texts, joined in order, in pieces. Raises UserError as `Text.pieces` does."""
    before, total = 0, sum(text.size for text in texts)
    with work_progress(f"{doing} {', '.join(text.name for text in texts)}") as progress:
        for text in texts:
            for piece, done in text.pieces(on_bytes):
                progress(before + done, total)
                yield piece
            before += text.size


@contextlib.contextmanager
def texts_of(paths: list[Path], directory: Path) -> Iterator[list[Text]]:
    """Yield the texts of these paths: `-` is standard input; no path, the default text.

    What can be read only once is copied to a file without a name in `directory`. Raises UserError.
    """
    if [*map(str, paths)].count("-") > 1:
        raise UserError("- is given twice: standard input can be read once; leave one out")
    with contextlib.ExitStack() as stack:
        texts = [_text(path, directory, stack) for path in paths]
        if not paths:
            default, name = io.BytesIO(default_text().encode()), "Python's language reference"
            texts = [_copy(default, f"{name} (pydoc_data.topics)", directory, stack)]
        yield texts


def default_text() -> str:
    """Return the language reference that ships inside CPython, topic by topic."""
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _text(path: Path, directory: Path, stack: contextlib.ExitStack) -> Text:
    name = "standard input" if str(path) == "-" else str(path)
    with user_errors(name, GIVE):
        if str(path) == "-":
            _refuse_device(sys.stdin.buffer, name)
            if sys.stdin.buffer.isatty():
                logger.info("reading the text from this terminal, to the end of input (Ctrl-D)")
            return _copy(sys.stdin.buffer, name, directory, stack)
        if path.is_file():
            text = Text(name, path, path.stat().st_size)
        else:
            with path.open("rb") as pipe:
                _refuse_device(pipe, name)
                text = _copy(pipe, name, directory, stack)
        with text.path.open("rb") as stored:
            if not stored.read(len(XZ)).startswith(
                ARCHIVES.get(suffix := path.suffix.lower(), b"")
            ):
                raise UserError(f"{name}: truncated or no {suffix} archive; get it anew")
        return text


def _refuse_device(source: Any, name: str) -> None:
    """Raise UserError for a device, which may have no end; a terminal and /dev/null have one."""
    status = os.fstat(source.fileno())
    has_end = source.isatty() or os.path.samestat(status, Path(os.devnull).stat())
    if (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)) and not has_end:
        raise UserError(f"{name}: a device; {GIVE}")


def _copy(source: Any, name: str, directory: Path, stack: contextlib.ExitStack) -> Text:
    def pieces() -> Iterator[bytes]:
        done = 0
        with work_progress(f"reading {name}") as progress:
            while piece := source.read1(PIECE_BYTES):  # a terminal's end comes once
                done += len(piece)
                progress(done, 0)
                yield piece

    copy = stack.enter_context(unnamed_file(directory, pieces()))
    return Text(name, Path(f"/dev/fd/{copy.fileno()}"), copy.tell())


def _content(stored: BinaryIO, name: str) -> tuple[Iterator[bytes], type[Exception]]:
    """Return the text's bytes in pieces, and what they raise where the file is damaged."""
    first = stored.read(len(XZ))
    stored.seek(0)
    if first.startswith(GZIP):
        return _reads(gzip.GzipFile(fileobj=stored)), zlib.error
    if first.startswith(XZ):
        return filter(None, _xz_streams(stored)), lzma.LZMAError
    if first.startswith(ZSTD):
        package = f"{'compression' if sys.version_info >= (3, 14) else 'backports'}.zstd"
        with needing("zstd", name, package):
            zstd = importlib.import_module(package)
        return _reads(zstd.ZstdFile(stored)), zstd.ZstdError
    return _reads(stored), EOFError


def _reads(file: Any) -> Iterator[bytes]:
    return iter(lambda: file.read(PIECE_BYTES), b"")


def _xz_streams(stored: BinaryIO) -> Iterator[bytes]:
    """Yield the contents of all streams; lzma.LZMAFile ignores damaged ones after the first."""
    rest = stored.read(PIECE_BYTES)
    while rest:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        while not stream.eof:
            if stream.needs_input and not (rest := rest or stored.read(PIECE_BYTES)):
                raise EOFError("the end of a stream is missing")
            yield stream.decompress(rest, PIECE_BYTES)
            rest = b""
        after = itertools.chain([stream.unused_data], _reads(stored))
        rest = next(
            filter(None, (piece.lstrip(b"\0") for piece in after)), b""
        )  # zeros are padding
