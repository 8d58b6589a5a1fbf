"""What hangs, is lost or cannot be written outside a run: said, bounded, and mended afterwards."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manychar.protocol.effects import Save
from manychar.protocol.events import CheckpointWritten
from manychar.storage.append_log import AppendLog, LogReader
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.checkpoint_writer import Writer
from manychar.storage.journal import (
    AppliedStep,
    ServerStart,
    continue_journal,
    read_journal,
    resume_metrics,
)
from manychar.storage.recovery import ResumePoint
from manychar.storage.run_directory import open_run
from manychar.storage.validation_log import VALIDATION_NAME
from tests.commands import SMALL, Commands, until
from tests.fleet.test_fleet import endless, expect_same_bits


@pytest.mark.long
def test_a_server_that_does_not_stop_is_killed_and_the_run_goes_on_later(
    manychar: Commands, text: Path
) -> None:
    running = endless(manychar, text, "--workers", "1", "--checkpoint-every", "10")
    os.kill(manychar.find("server"), signal.SIGSTOP)
    running.send(signal.SIGTERM)
    done = running.end()
    assert "the server did not stop within 15 s: killed" in done.err
    assert done.code == 75
    manychar.expect_nobody()
    run = manychar.directory / "run"
    last = list_checkpoints(run / "checkpoints")[-1][0] + 25
    resumed = manychar.run("train", "--resume", "run", "--steps", str(last), "--workers", "1")
    assert resumed.code == 0, resumed.err
    assert expect_same_bits(run, text) == last


@pytest.mark.long
def test_verify_says_that_one_of_its_processes_was_ended(manychar: Commands, text: Path) -> None:
    made = manychar.run(
        *("train", str(text), "--run-dir", "run", *SMALL, "--workers", "1"),
        *("--steps", "1200", "--checkpoint-every", "400"),
    )
    assert made.code == 0, made.err
    verifying = manychar.start("verify", "run", "--processes", "2")
    os.kill(manychar.find("verify-share"), signal.SIGKILL)
    done = verifying.end()
    assert done.code == 3
    assert done.last_line == "manychar: manychar verify-share ended by SIGKILL"


READ_ONE_LINE = """
import subprocess, sys
command = [sys.executable, "-m", "manychar", *sys.argv[1:]]
process = subprocess.Popen(command, stdout=subprocess.PIPE)
process.stdout.readline()
process.stdout.close()
sys.exit(process.wait())
"""


@pytest.mark.long
def test_a_run_whose_samples_nobody_reads_goes_on(manychar: Commands, text: Path) -> None:
    done = manychar.run(
        *("train", str(text), "--run-dir", "run", *SMALL, "--workers", "1"),
        *("--steps", "300", "--sample-every", "20"),
        program=("-c", READ_ONE_LINE),
    )
    assert done.code == 0, done.err
    assert done.err.count("standard output: broken pipe: no more samples") == 1
    assert "step 300/300" in done.err


WRITE_WHERE_NOTHING_FITS = """
import subprocess, sys
with open("/dev/full", "w") as full:
    sys.exit(subprocess.call([sys.executable, "-m", "manychar", *sys.argv[1:]], stdout=full))
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_run_whose_samples_have_no_place_goes_on(manychar: Commands, text: Path) -> None:
    done = manychar.run(
        *("train", str(text), "--run-dir", "run", *SMALL, "--workers", "1"),
        *("--steps", "30", "--sample-every", "10"),
        program=("-c", WRITE_WHERE_NOTHING_FITS),
    )
    assert done.code == 0, done.err
    assert done.err.count("standard output: no space left on device: no more samples") == 1


class FullDisk:
    """A file that takes half of a write, and then none until there is room again."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.full = True

    def write(self, data: bytes) -> int:
        if not self.full:
            return int(self.file.write(data))
        if len(data) < 200:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(data[: len(data) // 2]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def append_steps(journal: AppendLog, first: int, last: int) -> None:
    for k in range(first, last + 1):
        journal.append(AppliedStep(1, k, 1.0, f"{k:08x}"))


def test_a_journal_on_a_disk_that_was_full_has_no_gap(tmp_path: Path) -> None:
    journal = continue_journal(tmp_path, "run-1", read_journal(tmp_path, "run-1"))
    journal.append(ServerStart(1, 0, "ab"))
    disk = journal._file = FullDisk(journal._file)  # type: ignore[assignment]
    append_steps(journal, 1, 50)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            journal.flush()
    append_steps(journal, 51, 60)
    disk.full = False
    journal.close()
    reading = read_journal(tmp_path, "run-1")
    assert not reading.extent.fault
    assert all(reading.digest(step) for step in range(1, 61))


@pytest.mark.long
def test_no_checkpoint_is_written_whose_journal_is_not(manychar: Commands, text: Path) -> None:
    made = manychar.run("train", str(text), "--run-dir", "run", *SMALL, "--steps", "5")
    assert made.code == 0, made.err
    run = open_run(manychar.directory / "run")
    checkpoint, _ = run.newest_checkpoint()
    (run.checkpoints / "step-000000005.safetensors").unlink()
    journal = continue_journal(run.path, run.run_id, read_journal(run.path, run.run_id))
    disk = journal._file = FullDisk(journal._file)  # type: ignore[assignment]
    metrics, _ = resume_metrics(run.path, 5)
    with Writer(
        run,
        ResumePoint(checkpoint, journal, metrics, 0.0, LogReader(run.path / VALIDATION_NAME), {}),
        lambda: None,
    ) as writer:
        append_steps(journal, 6, 6)
        writer.write(Save(checkpoint.state), lambda: None)
        news = until(writer.news, "what came of it")
        failure = "its journal: no space left on device; that of step 0 is kept; make room on"
        failure += " the disk, then resume the run"
        assert news == [CheckpointWritten(5, failure)]
        assert [step for step, _ in list_checkpoints(run.checkpoints)] == [0]
        disk.full = False
        writer.write(Save(checkpoint.state), lambda: None)
        assert until(writer.news, "what came of it") == [CheckpointWritten(5)]
    journal.close()
    metrics.close()
    assert [step for step, _ in list_checkpoints(run.checkpoints)] == [0, 5]


@pytest.mark.parametrize("every", ["200", "0"])
def test_a_run_directory_that_is_removed_leaves_no_promise(
    manychar: Commands, text: Path, every: str
) -> None:
    """It is noticed by the next checkpoint, or the next second."""
    running = endless(manychar, text, "--workers", "1", "--checkpoint-every", every)
    shutil.rmtree(manychar.directory / "run")
    done = running.end()
    assert done.code == 3, done.err
    assert "no such file or directory; no checkpoint is in run any more; if the run was" in done.err
    assert "kept" not in done.err
    assert "--resume" not in done.err


@pytest.mark.long
def test_a_journal_that_is_removed_ends_the_run_with_a_checkpoint(
    manychar: Commands, text: Path
) -> None:
    running = endless(manychar, text, "--workers", "1", "--checkpoint-every", "0")
    (manychar.directory / "run" / "journal.jsonl").unlink()
    done = running.end()
    assert done.code == 3, done.err
    assert "manychar: run/journal.jsonl was removed while the server wrote to it\n" in done.err
    assert max(list_checkpoints(manychar.directory / "run" / "checkpoints"))[0] > 0


@pytest.mark.long
def test_a_disk_that_is_really_full_ends_the_run_and_room_lets_it_go_on(
    manychar: Commands, text: Path, require: Callable[[bool, str], None]
) -> None:
    require(os.geteuid() == 0 and shutil.which("mount") is not None, "root mounts a small disk")
    disk = manychar.directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        done = manychar.run(
            *("train", str(text), "--run-dir", "disk/run", *SMALL, "--workers", "1"),
            *("--steps", "4000", "--checkpoint-every", "20", "--keep-checkpoints", "0"),
        )
        assert done.code == 3, done.err
        assert "no space left on device" in done.err
        assert "is kept; make room on the disk, then resume the run\nresume: " in done.err
        last = expect_same_bits(disk / "run", text)
        assert last > 0
        full = subprocess.run(["mount", "-o", "remount,size=4m", disk], check=False)
        assert full.returncode == 0
        resumed = manychar.run("train", "--resume", "disk/run", "--steps", str(last + 30))
        assert resumed.code == 0, resumed.err
        assert expect_same_bits(disk / "run", text) == last + 30
        assert manychar.run("verify", "disk/run").code == 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
