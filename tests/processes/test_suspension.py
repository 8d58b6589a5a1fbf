"""Ctrl-Z: SIGTSTP pauses a process with its children, SIGCONT has them go on."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.commands import SMALL, Commands, Running, until
from tests.conftest import Require

# The leader of the session, as a shell is, with a process group for its job.
SHELL = """
import subprocess, sys
job = subprocess.Popen(sys.argv[1:], process_group=0)
print("job", job.pid, file=sys.stderr, flush=True)
sys.exit(job.wait())
"""
LONGER_THAN_THE_LEASE = 2.5  # seconds
TRAIN = ("train", "text.txt", *SMALL, "--shards", "3", "--workers", "3", "--validation", "0.1")
FLAGS = ("--steps", "0", "--checkpoint-every", "200", "--run-dir", "run")


def start(manychar: Commands, *words: str) -> tuple[Running, int]:
    """Start a job of a shell; return its process id, too."""
    running = manychar.start(*words, before=(sys.executable, "-c", SHELL))
    return running, int(running.wait_for(r"job (\d+)")[1])


def is_paused(pid: int) -> bool:
    return "sigtimedwait" in Path(f"/proc/{pid}/wchan").read_text()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.fixture
def manychar(manychar: Commands, text: Path, require: Require) -> Commands:
    require(os.access("/proc/self/wchan", os.R_OK), "needs /proc to see what a process waits for")
    (manychar.directory / "text.txt").write_bytes(text.read_bytes())
    return manychar


def test_a_run_pauses_and_goes_on_with_all_its_processes(manychar: Commands) -> None:
    running, job = start(manychar, *TRAIN, *FLAGS, "--compute")
    running.wait_for(r"validation [\d.]+")
    children = manychar.family().keys() - {running.pid, job}
    assert len(children) == 4, "server, two workers, validation"
    os.kill(job, signal.SIGTSTP)
    until(lambda: is_stopped(job) and all(map(is_paused, children)), "all to stand still")
    time.sleep(LONGER_THAN_THE_LEASE)
    before = running.err
    os.kill(job, signal.SIGCONT)
    until(lambda: running.err.count("\n") > before.count("\n") + 1, "progress")
    os.kill(job, signal.SIGTERM)
    done = running.end()
    assert done.code == 75, done
    after = done.err.removeprefix(before)
    assert "sent nothing" not in after, done.err
    assert "reassigned" not in after
    manychar.expect_nobody()


@pytest.mark.long
def test_without_a_shell_a_run_goes_on(manychar: Commands) -> None:
    """Nobody could continue it: by default, SIGTSTP has no effect there.

    So its children get a SIGCONT at once after each SIGTSTP.
    """
    running = manychar.start(*TRAIN, *FLAGS)
    running.wait_for("step [1-9]")
    for _ in range(20):
        os.kill(running.pid, signal.SIGTSTP)
    lines = running.err.count("\n")
    until(lambda: running.err.count("\n") > lines + 1, "progress")
    running.send(signal.SIGTERM)
    assert running.end().code == 75
    manychar.expect_nobody()


@pytest.mark.long
def test_several_workers_pause_with_their_parent(manychar: Commands) -> None:
    server = manychar.start(
        *("server", "text.txt", *SMALL, *FLAGS, "--shards", "2", "--bind", "ipc://here")
    )
    until((manychar.directory / "here").exists, "the server's socket")
    running, job = start(manychar, "worker", "ipc://here", "--name", "w", "--processes", "2")
    for name in ("w-1", "w-2"):
        server.wait_for(f"{name} has joined")  # before that it has no shards to reassign
    children = [manychar.find("--name", name) for name in ("w-1", "w-2")]
    os.kill(job, signal.SIGTSTP)
    until(lambda: is_stopped(job) and all(map(is_paused, children)), "all to stand still")
    server.wait_for("the shards of w-1 are reassigned")
    os.kill(job, signal.SIGCONT)
    lines = server.err.count("\n")
    until(lambda: server.err.count("\n") > lines + 2, "progress")
    server.interrupt()
    assert (server.end().code, running.end().code) == (0, 0)
