"""`worker --processes`: several workers by one command, restarted, and ended together."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.commands import SMALL, Commands
from tests.fleet.test_fleet import CRASHES_ONCE, ENDLESS, expect_same_bits, further

POOL = ("--processes", "2", "--name", "pool")


@pytest.mark.long
def test_a_pool_restarts_what_crashes_and_says_who_joined_and_why_it_ended(
    manychar: Commands, text: Path, tmp_path: Path
) -> None:
    bind = "tcp://127.0.0.1:*"
    server = manychar.start(
        *("server", str(text), "--bind", bind, "--run-dir", "run", *SMALL, *ENDLESS)
    )
    endpoint = server.wait_for(r"manychar worker (tcp://127\.0\.0\.1:\d+)\n")[1]
    planted = CRASHES_ONCE.format(role="pool-1", module="manychar.fleet.engine")
    (tmp_path / "sitecustomize.py").write_text(planted)
    pool = manychar.start("worker", endpoint, *POOL, env={"PYTHONPATH": str(tmp_path)})
    pool.wait_for("pool-1: RuntimeError: planted")
    pool.wait_for("pool-1 ended with exit code 70: starting it again in 0.5 s")
    pool.wait_for(f"pool-1: joined the run at {endpoint}")
    pool.wait_for(f"pool-2: joined the run at {endpoint}")
    os.kill(manychar.find("pool-2"), signal.SIGKILL)
    pool.wait_for("(?s)pool-2 ended by SIGKILL: starting it again.*pool-2: joined the run")
    further(server)
    server.send(signal.SIGTERM)
    assert server.end().code == 75
    ended = pool.end()
    assert ended.code == 75, ended.err
    for name in ("pool-1", "pool-2"):
        assert f"{name}: the server was stopped by SIGTERM" in ended.err
    assert expect_same_bits(manychar.directory / "run", text) >= 25


def test_a_pool_ends_with_the_run(manychar: Commands, text: Path) -> None:
    server = manychar.start(
        *("server", str(text), "--bind", "ipc://meet", "--run-dir", "run", *SMALL, *ENDLESS)
    )
    pool = manychar.start("worker", "ipc://meet", *POOL)
    server.wait_for("pool-1 has joined")
    server.wait_for("pool-2 has joined")
    server.interrupt()
    assert server.end().code == 0
    ended = pool.end()
    assert ended.code == 0, ended.err


def test_a_pool_ends_with_its_process(manychar: Commands) -> None:
    pool = manychar.start("worker", "ipc://meet", *POOL)
    manychar.find("pool-1")
    manychar.find("pool-2")
    os.kill(pool.pid, signal.SIGKILL)
    pool.process.wait()
    manychar.expect_nobody()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)],
    ids=["INT", "TERM", "HUP"],
)
def test_a_pool_ends_by_signal(manychar: Commands, number: int, code: int) -> None:
    pool = manychar.start("worker", "ipc://meet", *POOL)
    manychar.find("pool-1")
    manychar.find("pool-2")
    pool.send(number)
    done = pool.end()
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    manychar.expect_nobody()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["INT", "HUP"])
def test_each_worker_says_by_which_signal_the_pool_was_stopped(
    manychar: Commands, number: int
) -> None:
    pool = manychar.start("worker", "ipc://nobody", *POOL)
    for name in ("pool-1", "pool-2"):
        pool.wait_for(f"{name}: waiting for a server")
    pool.send(number)
    done = pool.end()
    said = re.findall(r"(pool-\d): stopped by (\w+)", done.err)
    assert dict(said) == dict.fromkeys(("pool-1", "pool-2"), signal.Signals(number).name), done


@pytest.mark.long
def test_a_pool_without_a_server_says_what_it_waits_for(manychar: Commands) -> None:
    done = manychar.run("worker", "ipc://nobody", *POOL, "--connect-timeout", "3")
    assert done.code == 3
    for name in ("pool-1", "pool-2"):
        assert f"{name}: waiting for a server at ipc://nobody" in done.err
        assert f"{name}: no server at ipc://nobody for 3 s" in done.err


def test_the_server_is_told_that_a_workers_parent_is_gone(manychar: Commands, text: Path) -> None:
    server = manychar.start(
        *("server", str(text), "--bind", "ipc://meet", "--run-dir", "run", *SMALL, *ENDLESS)
    )
    pool = manychar.start("worker", "ipc://meet", *POOL)
    server.wait_for("pool-1 has joined")
    server.wait_for("pool-2 has joined")
    further(server)
    pool.send(signal.SIGKILL)
    server.wait_for(r"pool-\d has left: .*(parent process|connection) is gone")
    pool.process.wait()
    server.interrupt()
    assert server.end().code == 0
    manychar.expect_nobody()


def test_a_server_says_that_its_parent_is_gone(manychar: Commands, text: Path) -> None:
    training = manychar.start("train", str(text), *SMALL, *ENDLESS, "--run-dir", "run")
    training.wait_for("step ")
    training.send(signal.SIGKILL)
    training.process.wait()
    manychar.expect_nobody()
    events = (manychar.directory / "run" / "events.jsonl").read_text()
    assert "the server was stopped because its parent process is gone" in events
