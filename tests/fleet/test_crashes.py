"""Real crashes: processes killed, stopped and cut off at any moment, writes killed at every call.

Moments are drawn from a seed, and are moments of the run (so many more bytes of journal), not of a
clock. What is compared at the end is every checkpoint against one process's states.
"""

import collections
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from manychar.storage.append_log import LogReader
from manychar.storage.checkpoint import checkpoint_path, list_checkpoints, read_checkpoint
from manychar.storage.journal import AppliedStep, ServerStart, continue_journal, read_journal
from manychar.storage.run_directory import open_run
from tests.commands import SMALL, Commands, Running, until
from tests.conftest import Require
from tests.fleet.test_fleet import expect_same_bits

JOURNAL_BYTES_BETWEEN = 3_000


class ByHand:
    """A server and two workers started by hand, so that the test decides who starts again."""

    def __init__(self, manychar: Commands, text: Path, *, steps: int) -> None:
        self.manychar = manychar
        self.run = manychar.directory / "run"
        self._flags = ["--steps", str(steps), "--checkpoint-every", "50", "--sample-every", "0"]
        self.server = manychar.start(
            "server",
            str(text),
            "--run-dir",
            "run",
            *SMALL,
            "--bind",
            "tcp://127.0.0.1:0",
            *self._flags,
        )
        listening = self.server.wait_for(r"manychar worker (tcp://\S+)")
        self.endpoint = listening[1]
        self.workers = [self._worker(f"w{i}") for i in range(2)]
        self._said_before = [0, 0]  # what the server had said before a worker was started

    def _worker(self, name: str) -> Running:
        return self.manychar.start(
            "worker", self.endpoint, "--name", name, "--connect-timeout", "60"
        )

    def replace_worker(self, index: int) -> None:
        self._kill(self.workers[index])
        self._said_before[index] = len(self.server.err)
        self.workers[index] = self._worker(f"w{index}")

    def replace_server(self) -> None:
        self._kill(self.server)
        self._said_before = [0, 0]
        self.server = self.manychar.start(
            "server", "--resume", "run", "--bind", self.endpoint, *self._flags
        )

    def _kill(self, running: Running) -> None:
        running.send(signal.SIGKILL)
        assert running.end().code == -signal.SIGKILL

    def further(self, more: int) -> None:
        """Wait until the journal has grown by so many bytes."""
        journal = self.run / "journal.jsonl"
        before = journal.stat().st_size
        until(lambda: journal.stat().st_size >= before + more, self.server.described)

    def stop(self) -> None:
        """Have the run stopped with everybody in it, and compare its bits."""
        for i, before in enumerate(self._said_before):
            joined = f"w{i} has joined"
            until(lambda: joined in self.server.err[before:], self.server.described)  # noqa: B023
        stopped = self.manychar.run("stop", self.endpoint)
        assert stopped.code == 0, stopped.err
        assert self.server.end().code == 75
        ended = [worker.end() for worker in self.workers]
        assert [worker.code for worker in ended] == [75, 75], "\n".join(w.err for w in ended)


@pytest.mark.parametrize(
    ("seed", "kills_of_each"),
    [(1, 3), *(pytest.param(seed, 13, marks=pytest.mark.long) for seed in (1, 2))],
)
def test_kills_of_server_and_workers_change_no_bit(
    manychar: Commands, text: Path, seed: int, kills_of_each: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    fleet = ByHand(manychar, text, steps=30_000)
    kills = ["server", "worker"] * kills_of_each
    chance.shuffle(kills)
    for victim in kills:
        fleet.further(chance.randrange(JOURNAL_BYTES_BETWEEN))
        if victim == "server":
            fleet.replace_server()
        else:
            fleet.replace_worker(chance.randrange(2))
    fleet.stop()
    last = expect_same_bits(fleet.run, text)
    verified = manychar.run("verify", "run")
    assert verified.code == 0, verified.out + verified.err
    assert f"the same bits: {last:,} steps" in verified.out


@pytest.mark.long
def test_a_stopped_worker_is_taken_for_lost_and_comes_back(manychar: Commands, text: Path) -> None:
    fleet = ByHand(manychar, text, steps=0)
    fleet.server.wait_for("w0 has joined")  # the other one may be training before it has come
    fleet.further(1000)
    fleet.workers[0].send(signal.SIGSTOP)
    # Its lease ends by the lease timeout, or its connection by the transport's own heartbeats.
    lost = r"w0 (are reassigned: it has sent nothing|has left: its connection is gone)"
    fleet.server.wait_for(lost)
    fleet.further(1000)  # the other worker does it all
    fleet.workers[0].send(signal.SIGCONT)
    fleet.server.wait_for(rf"(?s){lost}.*w0 (answers again|has joined)")
    fleet.further(1000)
    fleet.stop()
    expect_same_bits(fleet.run, text)


def test_workers_find_a_server_that_starts_again(manychar: Commands, text: Path) -> None:
    fleet = ByHand(manychar, text, steps=0)
    fleet.further(1000)
    fleet.replace_server()
    fleet.server.wait_for("listening")
    fleet.server.wait_for("w0 has joined")
    fleet.server.wait_for("w1 has joined")
    fleet.further(1000)
    fleet.stop()
    expect_same_bits(fleet.run, text)


@pytest.mark.long
def test_a_second_server_on_the_same_run_is_refused(manychar: Commands, text: Path) -> None:
    fleet = ByHand(manychar, text, steps=0)
    second = manychar.run("server", "--resume", "run", "--bind", "tcp://127.0.0.1:0")
    assert second.code == 2
    assert "another server is running on it" in second.err
    fleet.stop()


WRITE = """
import ctypes, select, sys
from pathlib import Path
from manychar.storage.run_directory import open_run
from manychar.storage.checkpoint import checkpoint_path, write_checkpoint, read_checkpoint
from manychar.storage.journal import AppliedStep, ServerStart
from manychar.storage.journal import continue_journal, read_journal
import dataclasses
run = open_run(Path(sys.argv[1]))
before = read_checkpoint(checkpoint_path(run.checkpoints, 0))
reading = read_journal(run.path, run.run_id)
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: strace may attach
sys.stdout.write("begin"); sys.stdout.flush()
select.select([sys.stdin], [], [])
journal = continue_journal(run.path, run.run_id, reading)
journal.append(ServerStart(1, 0, before.sha256))
for k in range(1, 51):
    journal.append(AppliedStep(1, k, 1.5, f"{k:08x}"))
journal.flush()
journal.sync()
after = dataclasses.replace(before.state, step=50)
write_checkpoint(
    checkpoint_path(run.checkpoints, 50), before.definition, before.vocabulary, after
)
journal.close()
sys.stdout.write("end"); sys.stdout.flush()
"""
CALLS = "openat,write,fsync,rename,ftruncate,lseek,read,close,unlink"


@pytest.fixture
def small_run(manychar: Commands, text: Path) -> Path:
    """A run directory with nothing but checkpoint 0."""
    done = manychar.run(
        "train", str(text), *SMALL, "--run-dir", "run", "--steps", "1", "--workers", "1"
    )
    assert done.code == 0, done.err
    run = manychar.directory / "run"
    (run / "checkpoints" / "step-000000001.safetensors").unlink()
    (run / "journal.jsonl").unlink()
    return run


@pytest.mark.long
def test_a_write_killed_at_every_system_call_loses_nothing(
    small_run: Path, tmp_path: Path, require: Require
) -> None:
    require(shutil.which("strace") is not None, "strace kills a write at each of its system calls")
    moments = _moments(small_run, tmp_path / "counted")
    assert len(moments) > 20
    for i, (call, time) in enumerate(moments):
        copy = tmp_path / f"killed-{i}"
        shutil.copytree(small_run, copy)
        inject = f"inject={call}:signal=SIGKILL:when={time}"
        assert _write(copy, f"trace={call}", inject) == "", f"not killed at {call} {time}"
        _expect_nothing_lost(copy)


def _write(run: Path, *trace: str) -> str:
    """Write under strace, and return what was said of it ("end", or nothing where it was killed).

    strace attaches when all modules are loaded: how many calls that takes depends on what else the
    machine does, and calls are counted from where strace has attached.
    """
    pipe = subprocess.PIPE
    program = [sys.executable, "-P", "-c", WRITE, str(run)]
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.read(len("begin")) == "begin"
        command = ["strace", "-o", f"{run}.trace", "-p", str(writer.pid)]
        command += [word for expression in trace for word in ("-e", expression)]
        with subprocess.Popen(command, stderr=pipe, text=True) as tracer:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            said, _ = writer.communicate("go on\n")
        return said


def _moments(run: Path, copy: Path) -> list[tuple[str, int]]:
    """Return each system call of the write: its name, and how often it was called until then."""
    shutil.copytree(run, copy)
    assert _write(copy, f"trace={CALLS}") == "end"
    times: collections.Counter[str] = collections.Counter()
    moments = []
    for line in Path(f"{copy}.trace").read_text(encoding="utf-8").splitlines():
        name = line.split("(", 1)[0]
        if name not in CALLS.split(","):
            continue
        if '"end"' in line:
            break
        times[name] += 1
        moments.append((name, times[name]))
    return moments


def _expect_nothing_lost(run: Path) -> None:
    """Whatever is there must be whole, and the journal on disk before its checkpoint."""
    left = list_checkpoints(run / "checkpoints")
    assert [step for step, _ in left] in ([0], [0, 50])
    for step, path in left:
        assert read_checkpoint(path).state.step == step
    reading = read_journal(run, open_run(run).run_id)
    if len(left) == 2:
        assert all(reading.digest(step) for step in range(1, 51))


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.long
def test_a_disk_that_fails_is_reported_and_the_last_good_checkpoint_stays(
    manychar: Commands, text: Path, require: Require, error: str
) -> None:
    require(shutil.which("strace") is not None, "strace has the disk fail")
    flags = ["--steps", "400", "--checkpoint-every", "50"]
    made = manychar.run("train", str(text), "--run-dir", "run", *SMALL, "--steps", "60")
    assert made.code == 0, made.err
    call = "fsync" if error == "EIO" else "fsync,fdatasync"
    # The first calls are those of the start: the term, the journal, the configuration.
    inject = f"inject={call}:error={error}:when=8..9"
    server = manychar.start(
        *("-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject),
        *(sys.executable, "-m", "manychar", "server", "--resume", "run"),
        *("--bind", "tcp://127.0.0.1:0", *flags),
        program=("-c", "import os, sys; os.execvp('strace', ['strace', *sys.argv[1:]])"),
    )
    endpoint = server.wait_for(r"manychar worker (tcp://\S+)")[1]
    worker = manychar.start("worker", endpoint, "--name", "w0")
    ended = server.end()
    worker.end()
    assert "could not be written" in ended.err
    assert ended.code == 3, ended.err
    expect_same_bits(manychar.directory / "run", text)
    resumed = manychar.run("train", "--resume", "run", "--workers", "1", "--steps", "420")
    assert resumed.code == 0, resumed.err
    assert expect_same_bits(manychar.directory / "run", text) == 420


def _journal(run: Path) -> bytes:
    journal = continue_journal(run, "run-1", read_journal(run, "run-1"))
    journal.append(ServerStart(1, 0, "ab" * 32))
    for k in range(1, 6):
        journal.append(AppliedStep(1, k, 0.5 * k, f"{7 * k:08x}"))
    journal.append(ServerStart(2, 3, "cd" * 32))
    journal.append(AppliedStep(2, 4, 9.0, "00000063"))
    journal.close()
    return journal.path.read_bytes()


def test_every_truncation_of_a_journal_is_noticed_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _journal(tmp_path)
    whole = list(LogReader(path))
    ends = {0}
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        reading = read_journal(tmp_path, "run-1")
        assert (read := list(LogReader(path))) == whole[: len(read)]
        assert reading.extent.length <= length
        assert bool(reading.extent.fault) == (reading.extent.length < length)
        ends.add(reading.extent.length)
    assert len(ends) == len(whole)


@pytest.mark.long
def test_every_flipped_bit_of_a_journal_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _journal(tmp_path)
    whole = list(LogReader(path))
    for place in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[place] ^= 1 << bit
            path.write_bytes(altered)
            reading = read_journal(tmp_path, "run-1")
            assert reading.extent.fault
            assert (read := list(LogReader(path))) == whole[: len(read)]


def test_a_torn_tail_is_cut_off_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _journal(tmp_path)
    path.write_bytes(data[:-3])
    reading = read_journal(tmp_path, "run-1")
    journal = continue_journal(tmp_path, "run-1", reading)
    journal.append(AppliedStep(2, 4, 9.0, "00000063"))
    journal.close()
    assert path.read_bytes() == data
    again = read_journal(tmp_path, "run-1")
    digests = [None, "00000007", "0000000e", "00000015", "00000063", None]
    assert [again.digest(step) for step in range(6)] == digests


def test_a_journal_of_many_steps_takes_little_memory(tmp_path: Path) -> None:
    count = 50_000
    journal = continue_journal(tmp_path, "run-1", read_journal(tmp_path, "run-1"))
    for k in range(1, count + 1):
        journal.append(AppliedStep(1, k, 1.0, f"{k:08x}"))
    journal.close()
    tracemalloc.start()
    reading = read_journal(tmp_path, "run-1")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reading.digest(count) == f"{count:08x}"
    assert most < 20 * count


@pytest.mark.parametrize(
    ("records", "newest"),
    [
        ([], 0),
        ([ServerStart(1, 0, ""), *(AppliedStep(1, k, 0.0, "0" * 8) for k in (1, 2, 3))], 3),
        (
            [
                ServerStart(1, 0, ""),
                AppliedStep(1, 1, 0.0, "0" * 8),
                ServerStart(2, 3, ""),
                AppliedStep(2, 4, 0.0, "0" * 8),
            ],
            4,
        ),
        ([AppliedStep(1, k, 0.0, "0" * 8) for k in (1, 2, 3)] + [ServerStart(2, 1, "")], 1),
    ],
)
def test_a_journal_knows_its_newest_step(
    tmp_path: Path, records: list[ServerStart | AppliedStep], newest: int
) -> None:
    journal = continue_journal(tmp_path, "run-1", read_journal(tmp_path, "run-1"))
    for record in records:
        journal.append(record)
    journal.close()
    for with_steps in (True, False):
        assert read_journal(tmp_path, "run-1", with_steps=with_steps).newest == newest
    assert max(0, len(read_journal(tmp_path, "run-1").digests) - 1) == newest


def _altered(run: Path, name: str) -> None:
    path = run / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["journal.jsonl", "corpus.bin", "checkpoints/step-000000050.safetensors"]
)
@pytest.mark.long
def test_verify_notices_an_altered_file(manychar: Commands, text: Path, name: str) -> None:
    done = manychar.run(
        *("train", str(text), "--run-dir", "run", *SMALL, "--workers", "1"),
        *("--steps", "100", "--checkpoint-every", "50"),
    )
    assert done.code == 0, done.err
    assert manychar.run("verify", "run", "--processes", "1").code == 0
    assert manychar.run("verify", "run", "--from", "60", "--to", "80").code == 0
    _altered(manychar.directory / "run", name)
    verified = manychar.run("verify", "run", "--processes", "1")
    assert verified.code == 2
    assert Path(name).name in verified.err
    assert len(verified.err.splitlines()) == 1


@pytest.mark.long
def test_a_run_whose_journal_was_torn_before_its_checkpoint_is_verified(
    manychar: Commands, text: Path
) -> None:
    def train(*flags: str) -> None:
        done = manychar.run("train", *flags, "--checkpoint-every", "50")
        assert done.code == 0, done.err

    train(str(text), "--run-dir", "run", *SMALL, "--workers", "1", "--steps", "100")
    journal = manychar.directory / "run" / "journal.jsonl"
    size = journal.stat().st_size
    os.truncate(journal, size * 3 // 4)
    assert manychar.run("verify", "run").code == 2
    train("--resume", "run", "--steps", "150")
    verified = manychar.run("verify", "run")
    said = r"the same bits: (\d+) steps, 4 checkpoints; (\d+) steps without a record\n"
    counts = re.fullmatch(said, verified.out)
    assert counts, verified.out
    assert int(counts[1]) + int(counts[2]) == 150
    assert f"no record of {counts[2]} steps from {101 - int(counts[2])} to 100: " in verified.err


@pytest.mark.long
def test_verify_names_the_first_step_and_array_that_differ(
    manychar: Commands, text: Path, small_run: Path
) -> None:
    """A checkpoint that is whole but wrong: another seed's."""
    other = manychar.run(
        *("train", str(text), "--run-dir", "other", *SMALL, "--workers", "1"),
        *("--steps", "100", "--checkpoint-every", "50"),
    )
    assert other.code == 0, other.err
    run = manychar.directory / "other"
    code = (
        "import sys, dataclasses; from pathlib import Path\n"
        "from manychar.storage.checkpoint import read_checkpoint, write_checkpoint\n"
        "path = Path(sys.argv[1]); c = read_checkpoint(path); path.unlink()\n"
        "wrong = c.state.parameters.flat.copy(); wrong[3] += 1e-3\n"
        "state = dataclasses.replace(c.state, parameters=c.state.parameters.like(wrong))\n"
        "write_checkpoint(path, c.definition, c.vocabulary, state)\n"
    )
    wrong = checkpoint_path(run / "checkpoints", 50)
    subprocess.run([sys.executable, "-c", code, str(wrong)], check=True)
    _altered(run, "checkpoints/step-000000100.safetensors")
    for processes in ("1", "2"):
        verified = manychar.run("verify", "other", "--processes", processes)
        assert verified.code == 1
        assert verified.out == "DIFFERENT: first at step 50, in Wxh\n"
