"""Relays as processes: killed, in chains, with keys, and what a user does wrong with them."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from manychar.network import keys
from manychar.protocol.messages import KeyRole
from tests.commands import SMALL, Commands, Running, until
from tests.fleet.test_fleet import expect_same_bits

LOOPBACK = "tcp://127.0.0.1:0"
WRONG = 3
SPOILS = f"""
import os, sys

if "wrong" in sys.orig_argv or ("worker" in sys.orig_argv and "ALL_WRONG" in os.environ):
    from manychar.network.dealer import Dealer
    from manychar.protocol.codec import LAYOUTS

    send, header = Dealer.send, LAYOUTS["UnitResult"].packed

    def spoiling(self, frames):
        if frames[0][:2] == header.code:
            fields = {{}}
            header.unpack(frames[0], {{}}, fields)
            if fields["step"] == {WRONG}:  # a sum that is no number
                frames = [frames[0], bytes.fromhex("0000c07f") + bytes(frames[1][4:])]
        send(self, frames)

    Dealer.send = spoiling
elif "--workers=16" in sys.orig_argv:
    from manychar.processes import usable_cores

    usable_cores.usable_cores = lambda: 64
elif "--name=old" in sys.orig_argv:
    import manychar.protocol.messages
    manychar.protocol.messages.WIRE_VERSION = 99
"""
FLAGS = (*SMALL, "--shards", "6", "--checkpoint-every", "200", "--sample-every", "0")
JOINS = r"manychar worker (tcp://\S+)"


def serve(manychar: Commands, text: Path, *flags: str) -> tuple[Running, str]:
    """Start a server; return it and its endpoint."""
    server = manychar.start(
        "server", str(text), "--run-dir", "run", *FLAGS, "--bind", LOOPBACK, *flags
    )
    return server, server.wait_for(JOINS)[1]


def relay(
    manychar: Commands, above: str, *flags: str, bind: str = LOOPBACK, name: str = "relay"
) -> tuple[Running, str]:
    """Start a relay; return it and its endpoint."""
    started = manychar.start("relay", above, "--bind", bind, "--name", name, *flags)
    return started, started.wait_for(JOINS)[1]


def progress(server: Running) -> list[str]:
    return re.findall(r"^step \S+  loss", server.err, re.MULTILINE)


def work(manychar: Commands, above: str, name: str, *flags: str) -> Running:
    return manychar.start("worker", above, "--name", name, *flags)


def test_a_killed_relay_changes_no_bit(manychar: Commands, text: Path) -> None:
    server, endpoint = serve(manychar, text, "--steps", "0")
    first, below = relay(manychar, endpoint)
    workers = [work(manychar, below, f"w{i}") for i in range(2)]
    journal = manychar.directory / "run" / "journal.jsonl"

    def further() -> None:
        size = journal.stat().st_size
        until(lambda: journal.stat().st_size > size + 2000, server.described)

    for each in range(2):
        first.wait_for(f"w{each} has joined")
    further()
    until(lambda: "  w1" in manychar.run("status", endpoint).out, server.described)
    first.send(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL
    again, same = relay(manychar, endpoint, bind=below)
    assert same == below
    further()
    workers[0].send(signal.SIGKILL)
    workers[0].end()
    further()
    stopped = manychar.run("stop", endpoint)
    assert stopped.code == 0, stopped.err
    assert [each.end().code for each in (server, again, workers[1])] == [75, 75, 75]
    assert expect_same_bits(manychar.directory / "run", text) > 0


def test_workers_end_as_a_relay_that_is_stopped_does(manychar: Commands, text: Path) -> None:
    server, endpoint = serve(manychar, text, "--steps", "0")
    between, below = relay(manychar, endpoint)
    worker = work(manychar, below, "w0")
    between.wait_for("w0 has joined")
    between.send(signal.SIGTERM)
    ended = [each.end() for each in (between, worker)]
    assert [each.code for each in ended] == [75, 75], ended[1].err
    assert ended[1].last_line.endswith("w0: the relay relay: stopped by SIGTERM")
    assert manychar.run("stop", endpoint).code == 0
    assert server.end().code == 75


@pytest.mark.long
def test_a_chain_of_relays_and_a_worker_beside_it(manychar: Commands, text: Path) -> None:
    server, endpoint = serve(manychar, text, "--steps", "0")
    upper, middle = relay(manychar, endpoint, name="upper")
    lower, bottom = relay(manychar, middle, name="lower")
    workers = []
    for above, at in ((server, endpoint), (upper, middle), (lower, bottom)):
        workers.append(work(manychar, at, "worker"))
        above.wait_for("worker has joined")
    reached = len(progress(server))
    until(lambda: len(progress(server)) > reached + 2, "steps with all of them")
    server.interrupt()
    ended = [each.end() for each in (server, upper, lower, *workers)]
    assert [each.code for each in ended] == [0] * 6, "\n".join(each.err for each in ended)
    assert expect_same_bits(manychar.directory / "run", text) > 0


@pytest.mark.long
def test_each_side_has_its_own_keys(manychar: Commands, text: Path) -> None:
    above, below = (manychar.directory / name for name in ("above", "below"))
    keys.create(above)
    keys.create(below)
    key_above = keys.add(above, "rack", KeyRole.WORKER)
    server, endpoint = serve(manychar, text, "--steps", "500", "--keys", str(above))
    flags = ("--key", str(key_above), "--keys", str(below))
    between, relayed = relay(manychar, endpoint, *flags, name="rack")
    assert f"manychar worker {relayed} --key FILE\n" in between.err
    wrong = ("--key", str(above / "worker.key"), "--connect-timeout", "1")
    assert work(manychar, relayed, "stranger", *wrong).end().code == 3
    worker = work(manychar, relayed, "worker", "--key", str(below / "worker.key"))
    assert [each.end().code for each in (server, between, worker)] == [0, 0, 0]
    assert expect_same_bits(manychar.directory / "run", text) == 500


@pytest.mark.long
def test_workers_end_as_a_relay_whose_key_is_refused_does(manychar: Commands, text: Path) -> None:
    directory = manychar.directory / "above"
    keys.create(directory)
    key = keys.add(directory, "rack", KeyRole.WORKER)
    server, endpoint = serve(manychar, text, "--steps", "0", "--keys", str(directory))
    between, below = relay(manychar, endpoint, "--key", str(key), name="rack")
    worker = work(manychar, below, "w0")
    between.wait_for("w0 has joined")
    server.send(signal.SIGKILL)
    server.end()
    keys.revoke(directory, "rack")
    again = ("--resume", "run", "--bind", endpoint, "--keys", str(directory))
    server = manychar.start("server", *again)
    ended = [each.end() for each in (between, worker)]
    assert [each.code for each in ended] == [3, 75], ended[1].err
    assert "refuses the handshake: it does not know this key" in ended[0].last_line
    assert f"w0: the relay rack: {endpoint} refuses the handshake" in ended[1].last_line
    server.interrupt()
    server.end()


@pytest.mark.long
def test_an_observer_is_told_where_the_server_is(manychar: Commands, text: Path) -> None:
    server, endpoint = serve(manychar, text, "--steps", "0")
    between, below = relay(manychar, endpoint)
    shown = manychar.run("status", below)
    assert shown.code == 3
    assert shown.err.endswith(f"this is a relay: connect to {endpoint}\n")
    assert manychar.run("stop", endpoint).code == 0
    assert [each.end().code for each in (server, between)] == [75, 75]


def test_a_relay_of_its_own(manychar: Commands) -> None:
    same = "tcp://127.0.0.1:25877"
    own = manychar.run("relay", same, "--bind", same)
    assert (own.code, own.err.count("\n")) == (2, 1)
    said = "a relay cannot work for itself: give it the server's ENDPOINT, or choose another --bind"
    assert own.err == f"manychar: {same}: {said}\n"
    other_name = manychar.run("relay", "tcp://localhost:25877", "--bind", same)
    assert other_name.code == 3
    assert other_name.last_line.endswith(f": tcp://localhost:25877: {said}")
    assert other_name.err.count("\n") == 3, other_name.err
    assert "refused" not in other_name.err


def test_a_cycle_of_relays(manychar: Commands) -> None:
    places = [f"ipc://{manychar.directory}/{i}" for i in range(3)]
    ring = {
        f"r{i}": manychar.start("relay", places[i - 1], "--bind", place, "--name", f"r{i}")
        for i, place in enumerate(places)
    }
    until(lambda: any(each.process.poll() is not None for each in ring.values()), "a refusal")
    below = next(name for name, each in ring.items() if each.process.poll() is not None)
    refused = ring.pop(below).end()
    assert refused.code == 3
    (above,) = re.findall(
        r"a cycle of relays: (r\d) is above and below it; give", refused.last_line
    )
    said = f"{below} was refused: a cycle of relays: {above} is above and below it"
    ring[above].wait_for(said)
    for each in ring.values():
        each.send(signal.SIGKILL)
        each.end()


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """An environment in which a worker named wrong sends a wrong sum, and old is of a version."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SPOILS)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.long
def test_a_wrong_worker_is_banned_through_two_relays(
    manychar: Commands, text: Path, site: dict[str, str]
) -> None:
    server, endpoint = serve(manychar, text, "--steps", "200")
    upper, middle = relay(manychar, endpoint, name="upper")
    lower, bottom = relay(manychar, middle, name="lower")
    wrong = manychar.run("worker", bottom, "--name", "wrong", env=site)
    assert (wrong.code, "banned: it computed step 3" in wrong.err) == (3, True), wrong.err
    again = manychar.run("worker", middle, "--name", "wrong")
    assert (again.code, "banned: it computed step 3" in again.err) == (3, True), again.err
    right = work(manychar, bottom, "right")
    ended = [each.end() for each in (server, upper, lower, right)]
    assert [each.code for each in ended] == [0] * 4, "\n".join(each.err for each in ended)
    facts = json.loads((manychar.directory / "run" / "config.json").read_text())["facts"]
    assert list(facts["banned"]) == ["wrong"]
    assert expect_same_bits(manychar.directory / "run", text) == 200


@pytest.mark.long
def test_a_relay_of_another_version(manychar: Commands, text: Path, site: dict[str, str]) -> None:
    server, endpoint = serve(manychar, text, "--steps", "0")
    old = manychar.run("relay", endpoint, "--bind", LOOPBACK, "--name=old", env=site)
    assert old.code == 3
    assert "its wire version is 99" in old.last_line
    assert manychar.run("stop", endpoint).code == 0
    assert server.end().code == 75


RUN = ("--run-dir", "run", *FLAGS)


def shown_tree(manychar: Commands) -> dict[str, set[str]]:
    """Return the names of the workers that `status` shows, by the relay that they work for."""
    tree: dict[str, set[str]] = {}
    for each in json.loads(manychar.run("status", "run", "--json").out)["workers"]:
        tree.setdefault(each["relay"], set()).add(each["name"])
    return tree


@pytest.mark.long
@pytest.mark.parametrize("is_long", [False, True])
def test_train_starts_relays_and_starts_a_killed_one_again(
    manychar: Commands, text: Path, tmp_path: Path, *, is_long: bool
) -> None:
    """Also where $TMPDIR is too long for sockets: over TCP then, with keys."""
    scratch = tmp_path / ("long" * 30 if is_long else "short")
    scratch.mkdir()
    flags = ("--steps", "0", "--workers", "3", "--relays", "2", "--log-every", "0.5")
    running = manychar.start("train", str(text), *RUN, *flags, env={"TMPDIR": str(scratch)})
    for name in ("relay-1", "relay-2"):
        running.wait_for(f"{name} has joined")
    tree = {
        "relay-1": {"worker-1", "worker-3"},
        "relay-2": {"worker-2"},
        "": {"relay-1", "relay-2"},
    }
    until(lambda: shown_tree(manychar) == tree, running.described)
    os.kill(manychar.find("relay", "relay-1"), signal.SIGKILL)
    running.wait_for("relay-1 ended by SIGKILL: starting it again")
    running.wait_for("relay-1 has joined(?s:.*)relay-1 has joined")
    reached = len(progress(running))
    until(lambda: len(progress(running)) > reached + 2, running.described)
    running.interrupt()
    ended = running.end()
    assert ended.code == 0, ended.err
    assert "--relays=2 --resume run" in ended.err
    assert not list(scratch.iterdir())
    assert expect_same_bits(manychar.directory / "run", text) > 0


@pytest.mark.long
def test_train_starts_relays_by_itself_on_a_large_machine(
    manychar: Commands, text: Path, site: dict[str, str]
) -> None:
    flags = ("--shards=16", "--workers=16", "--steps=100")
    done = manychar.run("train", str(text), "--run-dir", "run", *SMALL, *flags, env=site)
    assert done.code == 0, done.err
    said = r"4 relays between the server and 16 workers: a step is predicted to take \S+ ms instead"
    assert len(re.findall(said, done.err)) == 1, done.err
    assert "relay-4 has joined" in done.err
    assert expect_same_bits(manychar.directory / "run", text) == 100


def test_train_ends_when_no_worker_is_left_behind_its_relays(
    manychar: Commands, text: Path, site: dict[str, str]
) -> None:
    flags = ("--workers", "1", "--relays", "1", "--steps", "0")
    done = manychar.run("train", str(text), *RUN, *flags, env={**site, "ALL_WRONG": "1"})
    assert (done.code, "no worker is left" in done.err) == (3, True), done.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--relays", "3", "--workers", "2"), "--relays=3: more than --workers, 2"),
        (("--relays", "1", "--compute"), "--relays=1, --compute: with relays the server does not"),
    ],
)
def test_train_refuses_relays_that_cannot_be(
    manychar: Commands, text: Path, flags: tuple[str, ...], said: str
) -> None:
    done = manychar.run("train", str(text), *RUN, *flags)
    assert (done.code, said in done.last_line) == (2, True), done.err
    assert not (manychar.directory / "run").exists()


def test_keys_are_looked_at_before_a_relay_is_announced(manychar: Commands) -> None:
    assert manychar.run("keys", "create", "KEYS").code == 0
    relayed = ("relay", "tcp://127.0.0.1:9", "--key", "KEYS/worker.key")
    done = manychar.run(*relayed, "--bind", "tcp://0.0.0.0:0")
    assert done.code == 78
    assert "keys create RACK_KEYS`" in done.err, "KEYS may be the server's own"
    assert "--bind tcp://0.0.0.0:0 --keys RACK_KEYS` (or" in done.err
    for command in (relayed, ("server", __file__)):
        done = manychar.run(*command, "--keys", "KEYS/worker.key")
        assert (done.code, done.err) == (2, "manychar: KEYS/worker.key: not a directory of keys\n")
    (manychar.directory / "KEYS" / "clients.json").unlink()
    done = manychar.run(*relayed, "--keys", "KEYS")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
