"""Signals that terminals, shells, engines and schedulers send."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manychar.network.event_loop import EventLoop
from manychar.processes.child_process import pause_on_sigtstp
from manychar.processes.signals import STOPS, end_at_once, handle
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.event_log import EVENTS_NAME
from manychar.storage.journal import read_journal
from manychar.storage.run_directory import open_run
from tests.commands import SMALL, Commands, until
from tests.parameters import others_long

IGNORING = ("sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh")
ALONE = ("--compute", "--bind", "ipc://here", "--run-dir", "run", *SMALL)


def newest(manychar: Commands) -> int:
    return list_checkpoints(manychar.directory / "run" / "checkpoints")[-1][0]


@pytest.mark.parametrize(
    "number", others_long(sorted(STOPS.keys() - {signal.SIGINT, signal.SIGTERM}))
)
def test_a_signal_that_would_kill_has_the_server_write_a_checkpoint(
    manychar: Commands, text: Path, number: int
) -> None:
    server = manychar.start("server", str(text), *ALONE, "--steps", "0")
    server.wait_for("step [1-9]")
    server.send(number)
    done = server.end()
    assert done.code == 75, done
    assert f"stopped by {signal.Signals(number).name}" in done.err
    assert newest(manychar) > 0


def test_every_signal_with_a_name_that_ends_a_process_by_default_stops_it() -> None:
    """But for faults of the process itself and SIGKILL. Slurm and LSF can be told to send any."""
    faults = "ILL TRAP ABRT BUS FPE SEGV SYS EMT PIPE XFSZ"
    no_end = "CHLD CONT STOP TSTP TTIN TTOU URG WINCH INFO"
    others = {f"SIG{each}" for each in f"{faults} {no_end} KILL RTMIN RTMAX".split()}
    assert {signal.Signals(each).name for each in STOPS} == set(signal.Signals.__members__) - (
        others | {"SIGCLD", "SIGIOT", "SIGPOLL"}  # other names of some
    )


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGALRM])
def test_one_that_is_ignored_is_not_handled(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        pause_on_sigtstp()
        handle(number, by=end_at_once)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_terminal_that_closes_ends_a_run_in_order(manychar: Commands, text: Path) -> None:
    """The kernel sends SIGHUP to the foreground, and the shell to its jobs once more."""
    flags = *SMALL, "--steps", "0", "--workers", "1", "--run-dir", "run"
    running = manychar.start("train", str(text), *flags)
    running.wait_for("step [1-9]")
    running.send(signal.SIGHUP)
    running.wait_for("stopping")
    running.send(signal.SIGHUP)
    done = running.end()
    assert done.code == 75
    assert "\nresume: " in done.err
    assert newest(manychar) > 0
    events = (manychar.directory / "run" / EVENTS_NAME).read_text()
    assert "the run ends: the server was stopped by SIGHUP" in events
    manychar.expect_nobody()


@pytest.mark.parametrize("command", ["server", "train"])
def test_an_end_that_was_asked_for_is_no_error(
    manychar: Commands, text: Path, command: str
) -> None:
    """A collector alerts on the levels warning and error."""
    flags = *SMALL, "--steps", "0", "--run-dir", "run", "--log-format", "json"
    own = ("--bind", "ipc://here") if command == "server" else ("--workers", "1")
    running = manychar.start(command, str(text), *flags, *own, "--sample-length", "0")
    running.wait_for("listening;" if command == "server" else '"step": [1-9]')
    running.send(signal.SIGTERM)
    done = running.end()
    assert done.code == 75
    records = [json.loads(line) for line in done.err.splitlines()]
    levels = {each["text"]: each["level"] for each in records}
    assert levels["manychar: the server was stopped by SIGTERM"] == "info"
    assert {"warning", "error"}.isdisjoint(levels.values())
    refused = manychar.run("train", "nothing.txt", "--log-format", "json")
    assert json.loads(refused.last_line)["level"] == "error"


@pytest.mark.long
@pytest.mark.parametrize("command", ["server", "train"])
def test_what_is_ignored_at_the_start_stays_ignored(
    manychar: Commands, text: Path, command: str
) -> None:
    """As nohup does, and a shell for a process in the background of a script."""
    flags = ALONE if command == "server" else (*SMALL, "--run-dir", "run")
    running = manychar.start(command, str(text), *flags, "--steps", "600", before=IGNORING)
    running.wait_for("step [1-9]")
    running.send(signal.SIGHUP)
    running.send(signal.SIGINT)
    done = running.end()
    assert done.code == 0, done
    assert "stopping" not in done.err
    assert newest(manychar) == 600


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_second_one_ends_a_run_at_once(manychar: Commands, text: Path, form: str) -> None:
    """It prints the line that resumes the run all the same."""
    flags = *SMALL, "--steps", "0", "--workers", "1", "--run-dir", "run", "--log-format", form
    running = manychar.start("train", str(text), *flags, "--log-every", "1")
    server = manychar.find("server", "--child")
    running.wait_for("step [1-9]")
    os.kill(server, signal.SIGSTOP)
    running.send(signal.SIGQUIT)
    running.wait_for("stopping")

    def ends_by_another() -> bool:  # after SAME_WITHIN
        running.send(signal.SIGTERM)
        return running.process.poll() is not None

    until(ends_by_another, "its end")
    done = running.end()
    assert done.code == 75
    line, known = done.last_line, f"--log-format={form} --log-every=1.0"
    resume = f"resume: manychar train {known} --resume run"
    assert (json.loads(line)["text"] if form == "json" else line) == resume
    os.kill(server, signal.SIGKILL)
    manychar.expect_nobody()


def test_two_at_once_are_one(manychar: Commands, text: Path) -> None:
    """As `timeout` and schedulers send them, to a process and to its group."""
    server = manychar.start("server", str(text), *ALONE, "--steps", "0")
    server.wait_for("step [1-9]")
    server.send(signal.SIGQUIT)
    server.send(signal.SIGTERM)
    done = server.end()
    assert done.code == 75
    resume = "resume: manychar server --bind ipc://here --compute --resume run"
    assert resume in done.err.splitlines()
    assert done.err.count("the server was stopped by SIG") == done.err.count("stopping:") == 1
    run = open_run(manychar.directory / "run")
    assert newest(manychar) == read_journal(run.path, run.run_id).newest, "a checkpoint was written"


def test_one_that_comes_while_the_interpreter_ends_shows_nothing(manychar: Commands) -> None:
    """As one that a callback sends at the last step: its handler must not raise SystemExit."""
    script = """
import atexit, os, signal, sys
from manychar import __main__
from manychar.cli import app
from manychar.processes.signals import STOPS, end_by_exception, handle

def run(arguments):
    handle(*STOPS, by=end_by_exception)
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
    return 0

app.run = run
__main__.main()
"""
    done = manychar.start(program=("-c", script)).end()
    assert (done.code, done.err) == (0, "")


def test_an_engines_command_resumes_its_server(manychar: Commands, text: Path) -> None:
    env = {"MANYCHAR_RESUME_COMMAND": "sbatch 'a b.sbatch'"}
    server = manychar.start("server", str(text), *ALONE, "--steps", "0", env=env)
    server.wait_for("step [1-9]")
    server.send(signal.SIGTERM)
    said = server.end().err
    assert re.findall("resume: .*", said) == ["resume: sbatch 'a b.sbatch' --compute --resume run"]


def test_one_that_comes_when_it_begins_to_be_caught_wakes_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_wakeup_fd, seen = signal.set_wakeup_fd, list[int]()

    def late(descriptor: int, **flags: bool) -> int:
        signal.raise_signal(signal.SIGUSR2)
        return set_wakeup_fd(descriptor, **flags)

    before = signal.signal(signal.SIGUSR2, lambda number, _: seen.append(number))
    try:
        with EventLoop() as loop:
            monkeypatch.setattr(signal, "set_wakeup_fd", late)
            loop.on_signal(seen.append, signal.SIGUSR2)
            monkeypatch.undo()
            loop.turn(0)
        assert seen, "it was caught, and the loop sleeps on"
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_ctrl_c_in_the_first_imports_prints_nothing() -> None:
    program = """
import builtins, os, signal
real = builtins.__import__
def interrupted(name, *more):
    if name == "manychar.processes.signals":
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *more)
builtins.__import__ = interrupted
from manychar.__main__ import main
main()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
