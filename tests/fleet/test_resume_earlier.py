"""A wrong gradient that was applied: the server executes itself again, from before it."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manychar.fleet.server_process import PENDING_STOP, execute_again
from manychar.processes.errors import CRASHED
from manychar.protocol.effects import Finish
from tests.commands import SMALL, TWO_WORKERS, Commands
from tests.fleet.test_fleet import expect_same_bits

WRONG, TOLD = 3, 6
SPOILS = f"""
import pathlib
import sys

if "worker" in sys.orig_argv:
    from manychar.network.dealer import Dealer
    from manychar.protocol.codec import LAYOUTS

    begun = pathlib.Path(__file__).with_name("begun")
    send, right, header = Dealer.send, [], LAYOUTS["UnitResult"].packed

    def spoiling(self, frames):
        is_result = frames[0][:2] == header.code
        fields = {{}}
        if is_result:
            header.unpack(frames[0], {{}}, fields)
        step = fields.get("step")
        if step == {WRONG} and not begun.exists():
            begun.touch()
            right.append(frames)
            frames = [frames[0], bytes([frames[1][0] ^ 1]) + bytes(frames[1][1:])]
        send(self, frames)
        if step == {TOLD} and right:
            send(self, right.pop())

    Dealer.send = spoiling
"""
FLAGS = (*SMALL, "--shards", "1", "--steps", "30", "--checkpoint-every", "2")


@pytest.fixture
def spoiling(tmp_path: Path) -> dict[str, str]:
    """An environment in which the first worker sends a wrong gradient, and later the right one."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SPOILS)
    return {"PYTHONPATH": str(folder)}


def expect_resumed(run: Path) -> None:
    facts = json.loads((run / "config.json").read_text())["facts"]
    assert list(facts["banned"].values()) == [f"it computed step {WRONG}, shard 0 wrongly"]
    assert facts["resume_before"] is None
    assert (run / "term").read_text() == "2\n"
    # Nor is what it computed before to be trusted, as far back as is remembered: to step 2 or so.
    set_aside = {path.name for path in (run / "checkpoints").glob("*.before-term-2")}
    assert "step-000000004.safetensors.before-term-2" in set_aside


@pytest.mark.long
def test_train_comes_to_the_same_bits(
    manychar: Commands, text: Path, spoiling: dict[str, str]
) -> None:
    done = manychar.run(
        *("train", str(text), "--run-dir", "run", *TWO_WORKERS, *FLAGS), env=spoiling
    )
    assert done.code == 0, done.err
    assert "this server executes itself again" in done.err
    run = manychar.directory / "run"
    expect_resumed(run)
    expect_same_bits(run, text)
    manychar.expect_nobody()


@pytest.mark.long
def test_a_server_keeps_its_process_and_endpoint(
    manychar: Commands, text: Path, spoiling: dict[str, str]
) -> None:
    server = manychar.start(
        *("server", str(text), "--run-dir", "run", "--bind", "tcp://127.0.0.1:0", *FLAGS),
        *("--log-every", "7"),
    )
    endpoint = server.wait_for(r"manychar worker (tcp://\S+)")[1]
    wrong = manychar.run("worker", endpoint, "--name", "worker-1", env=spoiling)
    assert (wrong.code, "banned" in wrong.err) == (3, True), wrong.err
    server.wait_for("(?s)executes itself again.*listening")
    assert "--log-every=7.0" in Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    right = manychar.run("worker", endpoint, "--name", "worker-2")
    assert right.code == 0, right.err
    assert server.end().code == 0
    run = manychar.directory / "run"
    expect_resumed(run)
    expect_same_bits(run, text)


def test_a_pending_stop_is_handed_on(manychar: Commands, trained: Path) -> None:
    done = manychar.run(
        *("server", "--resume", str(trained), "--bind", "tcp://127.0.0.1:0", "--steps", "0"),
        env={PENDING_STOP: json.dumps([75, "stopped by SIGTERM"])},
    )
    assert done.code == 75, done.err
    assert "stopped by SIGTERM" in done.err


def test_a_server_that_cannot_execute_itself_anew_is_started_again_by_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "execve", fails)
    server: Any = SimpleNamespace(
        directory=SimpleNamespace(path="run"),
        router=SimpleNamespace(endpoint="ipc://server"),
        compute=False,
        notifier=SimpleNamespace(variables={}),
        machine=SimpleNamespace(lifecycle=SimpleNamespace(requested_stop=Finish(75, "stopped"))),
    )
    finish = execute_again(server, [])
    assert finish.code == CRASHED
    assert "cannot allocate memory" in finish.reason
