"""A client that is refused ends at once, with the reason; one whose server is away waits."""

import contextlib
import dataclasses
import functools
import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from manychar.fleet.listener import Listener, most_frequent
from manychar.network import keys
from manychar.network.dealer import (
    ANOTHER_KEY,
    ATTEMPTS,
    NO_KEY,
    UNKNOWN_KEY,
    WITH_KEY,
    WITHOUT_KEY,
    Dealer,
)
from manychar.network.keys import ClientKey
from manychar.network.router import Router
from manychar.observability.status import COUNTER_SENTENCES
from manychar.processes.errors import UserError
from manychar.protocol.counters import Counter
from manychar.protocol.effects import Effect
from manychar.protocol.events import Dropped
from manychar.protocol.messages import KeyRole
from tests.commands import LOOK_EVERY, SMALL, Commands, until

AT_ONCE = 20.0  # on a busy machine; the connect timeout of what is tried here is longer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.create(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def key(folder: Path) -> ClientKey:
    return keys.read_client_key(folder / "worker.key")


@pytest.fixture
def other(tmp_path: Path) -> ClientKey:
    """A key to another server."""
    return keys.read_client_key(keys.create(tmp_path / "others"))


@contextlib.contextmanager
def served(
    folder: Path | None, endpoint: str = "tcp://127.0.0.1:*"
) -> Iterator[tuple[Router, list[int]]]:
    """A server's socket that answers handshakes, and its counts of refused ones."""
    router, over, refused = Router(endpoint, None, folder), threading.Event(), [0]

    def answer() -> None:
        while not over.wait(LOOK_EVERY):
            if router.authenticator is not None:
                router.authenticator.answer()
                refused.append(len(router.authenticator.take_refused()))

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        yield router, refused
    finally:
        over.set()
        answering.join()
        router.close()


def said_to(endpoint: str, key: ClientKey | None) -> str:
    """Return what a client is told that connects until it is refused."""
    with contextlib.closing(Dealer(endpoint, key)) as dealer:
        with pytest.raises(UserError) as refused:
            until(lambda: dealer.send([b"hello"]), "a refusal", seconds=AT_ONCE)
        assert refused.value.code == 3
        return str(refused.value)


class TestWhatTheHandshakeTells:
    def test_without_a_key(self, folder: Path) -> None:
        with served(folder) as (router, _):
            assert WITHOUT_KEY in said_to(router.endpoint, None)

    def test_with_an_unknown_or_revoked_key(
        self, folder: Path, key: ClientKey, other: ClientKey
    ) -> None:
        with served(folder) as (router, refused):
            unknown = dataclasses.replace(other, server=key.server)
            assert said_to(router.endpoint, unknown).endswith(UNKNOWN_KEY)
            keys.revoke(folder, "worker")
            assert said_to(router.endpoint, key).endswith(UNKNOWN_KEY)
            assert UNKNOWN_KEY.endswith("manychar keys add at the server makes another")
        assert sum(refused) == 2

    def test_with_the_key_of_another_server(self, folder: Path, other: ClientKey) -> None:
        """libzmq tells the client no reason, so it tries again, and each attempt is counted."""
        with served(folder) as (router, _):
            assert said_to(router.endpoint, other).endswith(ANOTHER_KEY)
            counted = 0
            while counted < ATTEMPTS:
                assert router._failures.poll(1000 * int(AT_ONCE)), f"{counted} are counted"
                counted += router.failed_handshakes()

    def test_which_other_programs_are_counted(self, folder: Path) -> None:
        """libzmq ends a connection of another protocol without a failed handshake."""
        with served(folder) as (router, _):
            address = "127.0.0.1", int(router.endpoint.rpartition(":")[2])
            with socket.create_connection(address, timeout=AT_ONCE) as browser:
                browser.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    while browser.recv(1000):
                        pass
            assert not router._failures.poll(200)
            socket.create_connection(address).close()
            assert router._failures.poll(1000 * int(AT_ONCE))
            assert router.failed_handshakes() == 1
        assert COUNTER_SENTENCES["handshakes_failed"].endswith("not finished within 5 s")

    def test_with_a_key_where_the_server_has_none(self, key: ClientKey) -> None:
        """libzmq closes at once, and tells why only where the client has read it by then."""
        with served(None) as (router, _):
            assert said_to(router.endpoint, key).endswith((WITH_KEY, ANOTHER_KEY))

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
    def test_by_what_is_no_server(self, key: ClientKey, answer: bytes) -> None:
        with anything_else(answer) as (endpoint, _):
            assert said_to(endpoint, key).endswith(ANOTHER_KEY)
            assert said_to(endpoint, None).endswith(NO_KEY)


@contextlib.contextmanager
def anything_else(answer: bytes, port: int = 0) -> Iterator[tuple[str, list[int]]]:
    """A program that closes each connection after an answer, and the times at which it did."""
    over, closed = threading.Event(), list[int]()
    listening = socket.create_server(("127.0.0.1", port))
    listening.settimeout(LOOK_EVERY)

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                visitor, _ = listening.accept()
                visitor.sendall(answer)
                visitor.close()
                closed.append(time.monotonic_ns())

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}", closed
    finally:
        over.set()
        serving.join()
        listening.close()


class TestWhatIsNoRefusal:
    def test_a_server_that_ends_in_the_handshake(self, folder: Path, key: ClientKey) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        with contextlib.closing(Dealer(endpoint, key)) as dealer:
            visitor, _ = listening.accept()
            listening.close()
            visitor.close()
            assert not dealer.send([b"hello"])
            with served(folder, endpoint):
                until(lambda: dealer.send([b"hello"]), "the connection")

    def test_a_forwarded_port_while_its_server_is_away(self, folder: Path, key: ClientKey) -> None:
        """The key fitted once: it does not become the wrong one."""
        with served(folder) as (router, _):
            endpoint = router.endpoint
            dealer = Dealer(endpoint, key)
            until(lambda: dealer.send([b"hello"]), "a connection")
        port = int(endpoint.rsplit(":", 1)[1])
        with contextlib.closing(dealer):
            with anything_else(b"", port) as (_, closed):
                until(lambda: dealer.send([b"x"]) or len(closed) > 2 * ATTEMPTS, "attempts")
            with served(folder, endpoint):
                until(lambda: dealer.send([b"hello"]), "the connection")

    def test_a_list_of_clients_that_cannot_be_read(self, folder: Path, key: ClientKey) -> None:
        """It is tried again, once a second, and is no refusal in the server's counts."""
        (folder / keys.CLIENTS_NAME).chmod(0o666)
        with pytest.raises(UserError, match="others can write"), served(folder):
            pass
        (folder / keys.CLIENTS_NAME).chmod(0o644)
        with (
            served(folder) as (router, refused),
            contextlib.closing(Dealer(router.endpoint, key)) as dealer,
        ):
            (folder / keys.CLIENTS_NAME).chmod(0o666)
            began = time.monotonic()
            until(lambda: dealer.send([b"x"]) or time.monotonic() > began + 2.5, "two attempts")
            assert not dealer.send([b"x"])
            (folder / keys.CLIENTS_NAME).chmod(0o644)
            until(lambda: dealer.send([b"hello"]), "the connection")
            assert sum(refused) == 0


def test_a_refused_key_is_a_line_of_the_log(folder: Path, key: ClientKey) -> None:
    """The counts alone tell an operator nothing of a worker that has lost its key."""
    told: list[Dropped] = []

    def handle(event: Dropped, now: float) -> list[Effect]:
        told.append(event)
        return []

    listener = Listener()
    listener.machine = SimpleNamespace(handle=handle, membership=SimpleNamespace(members={}))
    listener.router, listener.lost = Router("tcp://127.0.0.1:*", None, folder), deque()
    keys.revoke(folder, "worker")
    authenticator = listener.router.authenticator
    assert authenticator is not None

    def refused(dealer: Dealer) -> bool:
        authenticator.answer()
        try:
            return dealer.send([b"hello"])
        except UserError:
            return True

    with contextlib.closing(listener.router):
        for _ in range(2):
            with contextlib.closing(Dealer(listener.router.endpoint, key)) as dealer:
                until(functools.partial(refused, dealer), "a refusal", seconds=AT_ONCE)
        for _ in range(2):
            listener.check_keys()
    reason = "handshakes refused: 2, with a key that is unknown or revoked, from 127.0.0.1"
    refusals = [each for each in told if each.counter == Counter.HANDSHAKES_REFUSED]
    assert refusals == [Dropped(Counter.HANDSHAKES_REFUSED, 2, reason)]


def test_a_line_names_few_addresses() -> None:
    """Of a storm those with the most refusals, in a line that can be read."""
    refused = [f"10.0.0.{i}" for i in range(1, 6) for _ in range(i)]
    assert most_frequent(refused) == "10.0.0.5, 10.0.0.4, 10.0.0.3 and 2 more"
    assert most_frequent(["::1", "::1"]) == "::1"


@pytest.mark.long
def test_commands_end_at_once_and_raise_no_counts(
    manychar: Commands, text: Path, folder: Path, other: ClientKey
) -> None:
    watch = keys.add(folder, "watch", KeyRole.OBSERVER)
    stranger = folder.parent / "stranger.key"
    right = keys.read_client_key(folder / "worker.key")
    values = {"format": 1, **dataclasses.asdict(dataclasses.replace(other, server=right.server))}
    stranger.write_text(json.dumps(values))
    stranger.chmod(0o600)
    server = manychar.start(
        *("server", str(text), *SMALL, "--run-dir", "run", "--keys", str(folder)),
        *("--bind", "tcp://127.0.0.1:*"),
    )
    endpoint = server.wait_for(r"manychar worker (tcp://\S+) --key FILE")[1]
    foreign = folder.parent / "others" / "worker.key"
    tried = [
        ((), WITHOUT_KEY),
        (("--key", str(stranger)), UNKNOWN_KEY),
        (("--key", str(foreign)), ANOTHER_KEY),
    ]
    began = time.monotonic()
    for flags, reason in tried:
        done = manychar.run("worker", endpoint, *flags, "--connect-timeout", "3600")
        assert (done.code, done.out) == (3, "")
        assert f"manychar: {endpoint} refuses the handshake: {reason}" in done.last_line
    two = manychar.run("worker", endpoint, "--processes", "2", "--connect-timeout", "3600")
    assert (two.code, two.err.count(WITHOUT_KEY)) == (3, 2)
    asked = manychar.run("status", endpoint, "--key", str(stranger), "--connect-timeout", "3600")
    assert (asked.code, asked.err.count("\n")) == (3, 1)
    assert time.monotonic() - began < 5 * AT_ONCE

    server.wait_for(r"handshakes failed: \d+ \(each attempt of a client counts\): no key, another")
    said = "handshakes refused: [12], with a key that is unknown or revoked, from 127.0.0.1"
    server.wait_for(said)
    events = manychar.directory / "run" / "events.jsonl"
    until(lambda: re.search(said, events.read_text()), "the event")

    def counted() -> dict[str, int]:
        done = manychar.run("status", "run", "--json", "--key", str(watch))
        counts: dict[str, int] = json.loads(done.out)["counts"]
        return counts if counts["handshakes_refused"] == 2 else {}

    counts = until(counted, "two refused handshakes, counted once a second")
    assert COUNTER_SENTENCES["handshakes_failed"].startswith("handshakes: no key")
    assert 4 <= counts["handshakes_failed"] <= 60, "each tried a few times, and ended"
    server.interrupt()
    server.end()


def test_the_old_name_of_the_timeout_is_refused_with_the_new_one(manychar: Commands) -> None:
    done = manychar.run("worker", "tcp://127.0.0.1:1", "--patience", "3")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "No such option: --patience. Its name is now --connect-timeout" in done.err
