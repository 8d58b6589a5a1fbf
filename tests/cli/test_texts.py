"""Texts of any size and kind on the command line: bounded memory, the same bits, nothing left."""

import contextlib
import gzip
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from manychar.storage.checkpoint import read_checkpoint
from tests.cli.test_bad_input import expect_nothing_new, expect_one_line
from tests.commands import SMALL, Commands, until
from tests.conftest import Require
from tests.single_process import bits_of
from tests.texts import small_text

MB, MIB = 10**6, 2**20
BOUND = 64 * MIB
LARGE = (*SMALL, "--validation", "2e-5", "--steps", "20", "--checkpoint-every", "10")
# Stops where the ids are written, and not yet durable.
WAITS_FOR_THE_DISK = """
import os, signal
fsync = os.fsync
def waiting(descriptor):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith("corpus.bin"):
        print("the ids are written", flush=True)
        signal.pause()  # until it is ended
    fsync(descriptor)
os.fsync = waiting
"""
# Another program writes to the text between its two readings.
GROWS_BEFORE_THE_IDS_ARE_WRITTEN = """
import sys
def on_event(event, arguments):
    if event == "open" and "corpus.bin" in str(arguments[0]):
        with open("growing", "ab") as file:
            file.write(b"more")
sys.addaudithook(on_event)
"""
# Prints how much the memory grows while a text is read, written and checked.
ENCODES = """
import sys
from pathlib import Path
from manychar.storage.corpus_file import read_corpus, write_corpus
from manychar.storage.run_directory import open_run
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
with read_corpus([Path(sys.argv[1])], Path()) as corpus:
    write_corpus(Path(), corpus)
print(peak() - before, corpus.sha256)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def repeated(path: Path, text: str, size: int) -> Path:
    """Write a text of about so many bytes."""
    block = text.encode() * (4 * MB // len(text.encode()))
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(block)
    return path


def state_of(run: Path, step: int) -> str:
    return bits_of(read_checkpoint(run / "checkpoints" / f"step-{step:09}.safetensors").state)


class TestKinds:
    @pytest.fixture
    def plain(self, manychar: Commands) -> str:
        """The bits of a run on the plain text."""
        (manychar.directory / "text").write_text(small_text())
        return self.trained(manychar, "text")

    def trained(self, manychar: Commands, *text: str, given: bytes = b"") -> str:
        flags = (*SMALL, "--steps", "5", "--workers", "1", "--run-dir", "run")
        done = manychar.run("train", *text, *flags, given=given)
        assert done.code == 0, done.err
        bits = state_of(manychar.directory / "run", 5)
        shutil.rmtree(manychar.directory / "run")
        return bits

    def test_a_compressed_text_trains_to_the_same_bits(
        self, manychar: Commands, plain: str
    ) -> None:
        (manychar.directory / "text.gz").write_bytes(gzip.compress(small_text().encode()))
        assert self.trained(manychar, "text.gz") == plain
        expect_nothing_new(manychar, "text", "text.gz")

    @pytest.mark.long
    def test_standard_input_does_too(self, manychar: Commands, plain: str) -> None:
        data = small_text().encode()
        assert self.trained(manychar, "-", given=data) == plain
        assert self.trained(manychar, "-", given=gzip.compress(data)) == plain
        expect_nothing_new(manychar, "text")


def test_a_byte_order_mark_is_a_character_and_said(manychar: Commands) -> None:
    (manychar.directory / "text").write_text(small_text(), "utf-8-sig")
    done = manychar.run("train", "text", *SMALL, "--steps", "1", "--workers", "1")
    letters = len({*small_text()}) + 1
    assert f"characters, {letters} distinct, a byte order mark among them\n" in done.err


def test_a_text_that_is_typed_is_asked_for(manychar: Commands) -> None:
    controller, terminal = os.openpty()
    flags = (*SMALL, "--shards", "1", "--steps", "1", "--workers", "1")
    running = manychar.start("train", "-", *flags, stdin=terminal)
    running.wait_for("reading the text from this terminal, to the end of input")
    os.write(controller, small_text()[:900].encode() + b"\n\x04")
    done = running.end()
    assert done.code == 0, done.err
    os.close(controller)
    os.close(terminal)


class TestNothingIsLeft:
    def test_of_a_truncated_archive(self, manychar: Commands) -> None:
        whole = gzip.compress(small_text().encode())
        (manychar.directory / "text.gz").write_bytes(whole[:-9])
        done = manychar.run("train", "text.gz", "--run-dir", "run")
        expect_one_line(done, "text.gz: truncated or damaged", "get it anew")
        expect_nothing_new(manychar, "text.gz")

    def test_of_one_that_changes_while_it_is_read(self, manychar: Commands, tmp_path: Path) -> None:
        site, path = tmp_path / "site", manychar.directory / "growing"
        site.mkdir()
        (site / "sitecustomize.py").write_text(GROWS_BEFORE_THE_IDS_ARE_WRITTEN)
        path.write_text(small_text())
        env = {"PYTHONPATH": str(site)}
        done = manychar.run("train", "growing", "--run-dir", "deep/run", env=env)
        assert path.read_text().endswith("more")
        expect_one_line(done, "growing: changed while it was read; give a text that is complete")
        assert {*manychar.directory.iterdir()} <= {path, site}
        manychar.expect_nobody()

    @pytest.mark.parametrize("text", ["text", "-"])
    def test_where_there_is_no_room(self, manychar: Commands, text: str, require: Require) -> None:
        require(shutil.which("prlimit"), "needs prlimit")
        path = repeated(manychar.directory / "text", small_text(), 9 * MB)
        with path.open("rb") as stdin:
            running = manychar.start(
                *("train", text, "--run-dir", "deep/run"),
                before=("prlimit", f"--fsize={MB}"),
                stdin=stdin.fileno(),
            )
        name = "deep/run" if text == "text" else "standard input"
        expect_one_line(running.end(), f"{name}: file too large")
        expect_nothing_new(manychar, "text")

    def test_of_standard_input_without_an_end(self, manychar: Commands) -> None:
        """It says how much it has copied, and ends when it is told to."""
        reading, writing = os.pipe()
        running = manychar.start("train", "-", "--run-dir", "deep/run", stdin=reading)
        os.close(reading)

        def is_said() -> bool:
            os.write(writing, b"more")
            return "reading standard input: 0 MB\n" in running.err

        until(is_said, running.described)
        running.interrupt()
        assert running.end().code == 130
        os.close(writing)
        expect_nothing_new(manychar)

    @linux
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
    def test_when_it_is_stopped(
        self, manychar: Commands, tmp_path: Path, number: int, code: int
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(WAITS_FOR_THE_DISK)
        running = manychar.start(
            "train", "--run-dir", "deep/run", env={"PYTHONPATH": str(tmp_path)}
        )
        running.wait_for("the ids are written", "out")
        assert (manychar.directory / "deep" / "run" / "corpus.bin").stat().st_size > 300_000
        running.send(number)
        assert running.end().code == code
        expect_nothing_new(manychar)


@pytest.mark.long
@linux
@pytest.mark.parametrize("text", [small_text(), "naïve Σίσυφος 日本語 🜁🜂\r\n"])
def test_memory_does_not_grow_with_the_text(manychar: Commands, tmp_path: Path, text: str) -> None:
    path = repeated(tmp_path / "text", text, 100 * MB)
    done = manychar.run(str(path), program=("-c", ENCODES))
    assert done.code == 0, done.err
    assert int(done.out.split()[0]) < BOUND / 2


@linux
@pytest.mark.long
def test_a_run_passes_with_a_memory_limit_smaller_than_the_text(
    manychar: Commands, tmp_path: Path, require: Require
) -> None:
    require(shutil.which("prlimit"), "needs prlimit")
    text = repeated(tmp_path / "text", small_text(), 500 * MB)
    done = manychar.start(
        *("train", str(text), *LARGE, "--workers", "2", "--run-dir", "run"),
        before=("prlimit", f"--data={400 * MB}"),
    ).end()
    assert done.code == 0, done.err
    assert state_of(manychar.directory / "run", 20)


class Memory:
    """The largest anonymous memory of each process of a family, by what it does."""

    def __init__(self, manychar: Commands) -> None:
        self.largest: dict[str, int] = {}
        self._manychar = manychar
        self._ended = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            for pid, words in self._manychar.family().items():
                with contextlib.suppress(OSError, IndexError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    found = int(status.split("RssAnon:")[1].split()[0]) * 1024
                    role = words[words.index("manychar") + 1] if "manychar" in words else words[0]
                    self.largest[role] = max(self.largest.get(role, 0), found)


def in_every_role(manychar: Commands, text: Path) -> dict[str, int]:
    """Return the most anonymous memory of each role that has to do with this text."""
    memory = Memory(manychar)
    with memory.watched():
        for command in (
            ("train", str(text), *LARGE, "--workers", "2", "--no-compute", "--run-dir", "run"),
            ("verify", "run", "--processes", "2"),
            ("evaluate", "run"),
            ("equivalence", str(text), *SMALL, "--steps", "400", "--checkpoint-every", "200"),
        ):
            scratch = {"TMPDIR": str(manychar.directory)}
            done = manychar.run(*command, env=scratch, seconds=1800)
            assert done.code == 0, done.err
        running = manychar.start("evaluate", "run", str(text), env=scratch)
        maps, stat = (Path(f"/proc/{running.pid}/{name}") for name in ("maps", "stat"))
        until(lambda: "(deleted)" in maps.read_text(), "the ids to be mapped", seconds=600)
        ticks = cpu_ticks(stat)
        until(lambda: cpu_ticks(stat) > ticks + 200 or not cpu_ticks(stat), "two seconds of work")
        running.interrupt()
        running.end()
    shutil.rmtree(manychar.directory / "run")
    return memory.largest


def cpu_ticks(stat: Path) -> int:
    """Return the time that a process has computed, in hundredths of a second; 0 if it has ended."""
    with contextlib.suppress(OSError):
        fields = stat.read_text().rpartition(")")[2].split()
        return 0 if fields[0] == "Z" else int(fields[11])
    return 0


@linux
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_role_takes_more_memory_with_a_text_of_four_gigabytes(
    manychar: Commands, tmp_path: Path, require: Require
) -> None:
    require(shutil.disk_usage(tmp_path).free > 20 * 10**9, "needs 20 GB of disk")
    small = in_every_role(manychar, repeated(tmp_path / "text", small_text(), 4 * MB))
    large = in_every_role(manychar, repeated(tmp_path / "text", small_text(), 4_000 * MB))
    assert small.keys() == large.keys() >= {"train", "server", "worker", "validate", "evaluate"}
    assert small.keys() >= {"verify", "verify-share", "equivalence"}
    for role, found in large.items():
        assert found < small[role] + BOUND, (role, small, large)
