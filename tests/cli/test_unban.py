"""`unban`, on a run directory and on a live server."""

import dataclasses
from pathlib import Path

import pytest

from manychar.storage.run_directory import open_run
from tests.commands import Commands


def ban(run: Path, *names: str) -> None:
    directory = open_run(run)
    facts = dataclasses.replace(directory.facts, banned=dict.fromkeys(names, "it was wrong"))
    dataclasses.replace(directory, facts=facts).write_config()


def test_in_a_run_directory(manychar: Commands, trained: Path) -> None:
    ban(trained, "ann", "bob")
    done = manychar.run("unban", str(trained), "ann")
    assert (done.code, done.last_line) == (0, "ann is no longer banned; banned: bob")
    assert open_run(trained).facts.banned == {"bob": "it was wrong"}
    again = manychar.run("unban", str(trained), "ann")
    answer = f"manychar: {trained}: ann is not banned; banned: bob\n"
    assert (again.code, again.err) == (2, answer), "as for any wrong name"
    wrong = manychar.run("unban", str(trained), "no name")
    assert wrong.code == 2
    assert "NAME no name: a name is 1 to 64 of the characters" in wrong.last_line


@pytest.mark.long
def test_at_a_live_server(manychar: Commands, trained: Path) -> None:
    ban(trained, "ann")
    server = manychar.start(
        *("server", "--resume", str(trained), "--bind", "tcp://127.0.0.1:0", "--steps", "0")
    )
    endpoint = server.wait_for(r"manychar worker (tcp://\S+)")[1]
    refused = manychar.run("worker", endpoint, "--name", "ann")
    assert (refused.code, "banned: it was wrong" in refused.err) == (3, True)
    unknown = manychar.run("unban", endpoint, "bob")
    answer = f"manychar: {endpoint}: bob is not banned; banned: ann"
    assert (unknown.code, unknown.last_line) == (2, answer)
    done = manychar.run("unban", str(trained), "ann")
    assert (done.code, done.last_line) == (0, "ann is no longer banned")
    assert open_run(trained).facts.banned == {}
    worker = manychar.start("worker", endpoint, "--name", "ann")
    server.wait_for("ann has joined")
    server.send(15)
    assert (server.end().code, worker.end().code) == (75, 75)
