"""Output that nobody reads in time stops nothing: whole records are dropped, and counted."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manychar.cli import console
from manychar.processes import log, queued_stream
from manychar.processes.queued_stream import QueuedStream
from manychar.storage.checkpoint import list_checkpoints
from tests.commands import SMALL, Commands, until
from tests.parameters import others_long

RECORD = "a record that is whole or not there\n"


class Pipe:
    """A pipe, the stream that writes to it, and what was read from it."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.stream = open(self.writing, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the end

    def fill(self) -> None:
        """Leave no room for a single byte."""
        os.set_blocking(self.writing, False)
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.writing, b"." * size)
        os.set_blocking(self.writing, True)

    def read(self) -> str:
        """Read what comes, to the last record that is known to come."""
        text = b""
        while not text.endswith(b"the end\n"):
            text += os.read(self.reading, 65_536)
        return text.decode().lstrip(".")

    def close(self) -> None:
        os.close(self.reading)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    with contextlib.closing(made):
        yield made


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_whole_records_are_dropped_and_counted(
    pipe: Pipe, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    monkeypatch.setattr(queued_stream, "MOST_RECORDS", 10)
    pipe.fill()
    stream = QueuedStream(pipe.stream, name)
    stream.write(RECORD)
    until(stream._records.empty, "the thread to take the first one")
    for _ in range(13):
        stream.write(RECORD)
    os.read(pipe.reading, 65_536)
    stream.drain()
    assert f"{name} was not read in time: 3 records dropped\n" in capsys.readouterr().err
    stream.write("the end\n")
    assert pipe.read() == 11 * RECORD + "the end\n"


def test_at_the_end_it_waits_only_while_there_is_progress(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    monkeypatch.setattr(queued_stream, "GIVE_UP_AFTER", 0.1)
    pipe.fill()
    stream = QueuedStream(pipe.stream, "stdout")
    stream.write(RECORD)
    stream.drain()
    assert "1 records dropped" in capsys.readouterr().err
    os.read(pipe.reading, 65_536)


def test_a_pipe_that_another_process_made_non_blocking_is_waited_for(pipe: Pipe) -> None:
    pipe.fill()
    os.set_blocking(pipe.writing, False)
    stream = QueuedStream(pipe.stream, "stdout")
    stream.write(RECORD)
    stream.write("the end\n")
    assert pipe.read() == RECORD + "the end\n"


def test_a_failure_is_raised_by_standard_output_alone() -> None:
    def written_to(name: str) -> QueuedStream:
        with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
            stream = QueuedStream(full, name)
            stream.write(RECORD)
            stream.drain()
        return stream

    written_to("stderr").write(RECORD)
    with pytest.raises(OSError, match="No space left"):
        written_to("stdout").write(RECORD)


@pytest.mark.parametrize("stalled", others_long(["stdout", "stderr"]))
@pytest.mark.parametrize("command", others_long(["train", "server"]))
def test_a_run_goes_on_while_its_output_is_not_read(
    manychar: Commands, text: Path, pipe: Pipe, stalled: str, command: str
) -> None:
    pipe.fill()
    flags = [*SMALL, "--steps", "100", "--run-dir", "run"]
    flags += ["--sample-every", "10", "--sample-length", "50"]
    flags += ["--bind", "ipc://here"] if command == "server" else ["--workers", "1"]
    output: Any = {stalled: pipe.writing}
    running = manychar.start(command, str(text), *flags, **output)
    if command == "server":
        until((manychar.directory / "here").exists, "the server's socket")
        assert manychar.start("worker", "ipc://here").end().code == 0
    done = running.end()
    assert done.code == 0, done
    assert list_checkpoints(manychar.directory / "run" / "checkpoints")[-1][0] == 100
    if stalled == "stdout":
        assert "stdout was not read in time" in done.err
    else:
        assert "--- step 100 ---" in done.out
    manychar.expect_nobody()


@pytest.mark.long
def test_observers_go_on_while_their_output_is_not_read(manychar: Commands, text: Path) -> None:
    flags = [*SMALL, "--steps", "0", "--bind", "tcp://127.0.0.1:0"]
    server = manychar.start("server", str(text), *flags)
    endpoint = server.wait_for(r"manychar worker (tcp://\S+)")[1]
    worker = manychar.start("worker", endpoint)
    observers = []
    with contextlib.ExitStack() as stack:
        for words in (("status", endpoint, "--watch"), ("sample", endpoint, "--follow")):
            pipe = stack.enter_context(contextlib.closing(Pipe()))
            observers.append(manychar.start(*words, stdout=pipe.writing))
            os.read(pipe.reading, 65_536)  # it has begun
            pipe.fill()
        lines = server.err.count("\n")
        until(lambda: server.err.count("\n") >= lines + 2, "two lines of the server's progress")
        server.interrupt()
        assert [running.end().code for running in (server, worker, *observers)] == [0] * 4
    for observer in observers:
        assert "stdout was not read in time" in observer.err


def test_a_failure_that_nobody_was_told_of_is_said_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure()
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        stream = QueuedStream(full, "stdout")
        stream.write("the last sample\n")
        stream.drain()
    assert "standard output: no space left on device: the rest is lost\n" in capsys.readouterr().err


def test_data_that_was_queued_last_is_missed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", full)
        with (
            pytest.raises(OSError, match=r"No space left.*'standard output'"),
            console.queued_output(),
        ):
            sys.stdout.write("the last record\n")


def test_a_result_comes_after_what_was_logged_before(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, released = [], threading.Event()

    def write_late(_: int, data: bytes) -> int:
        assert released.wait(60)
        written.append(data.decode())
        return len(data)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: released.set())
    monkeypatch.setattr(queued_stream, "os", SimpleNamespace(write=write_late))
    monkeypatch.setattr(queued_stream, "time", clock)
    monkeypatch.setattr(sys, "stderr", QueuedStream(pipe.stream, "stderr"))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=written.append, flush=lambda: None))
    log.write_line("step 60/60")
    console.write("the table\n")
    released.set()
    assert written == ["step 60/60\n", "the table\n"]


def test_a_thread_that_cannot_be_started_is_said_in_one_line(manychar: Commands) -> None:
    refusing = (
        "import sys, threading\n"
        'def refuse(*_): raise RuntimeError("can\'t start new thread")\n'
        "threading._start_new_thread = refuse\n"
        "from manychar.__main__ import main\n"
        "main()"
    )
    done = manychar.run("runs", program=("-c", refusing))
    limit = "the limit of memory or processes is too small: see `ulimit -a`"
    assert (done.code, done.err) == (3, f"manychar: can't start new thread: {limit}\n")
    no_process = (
        "import errno, subprocess\n"
        "def refuse(*_, **__): raise BlockingIOError(errno.EAGAIN, 'Resource unavailable')\n"
        "subprocess.Popen.__init__ = refuse\n"
        "from manychar.__main__ import main\n"
        "main()"
    )
    done = manychar.run("train", *SMALL, program=("-c", no_process))
    assert done.code == 3
    assert done.last_line == f"manychar: cannot start a process: resource unavailable; {limit}"
