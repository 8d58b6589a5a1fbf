"""Names of servers: looked up beside the loop, tried one after the other, asked for again."""

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from manychar.network import dealer as dealer_module
from manychar.network import name_resolution
from manychar.network.dealer import Dealer
from manychar.network.endpoints import host_name_of
from manychar.network.name_resolution import NameResolver
from manychar.network.router import Router
from tests.commands import Commands, until

Answers = Callable[[], list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answers]:
    """What names stand for: a function each."""
    known: dict[str, Answers] = {}

    def look_up(host: str, port: str, **_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, int(port))) for address in known[host]()]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(name_resolution, "LOOK_UP_AGAIN_AFTER", 0.05)
    monkeypatch.setattr(dealer_module, "TRY_FOR", 0.3)
    return known


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", True),
        ("server.lan", True),
        ("127.0.0.1", False),
        ("[::1]", False),
        ("[fe80::1%eth0]", False),
        ("*", False),
    ],
)
def test_what_has_to_be_looked_up(host: str, *, name: bool) -> None:
    assert host_name_of(f"tcp://{host}:1") == ((host, "1") if name else None)


def test_a_name_gives_its_addresses_round_and_round(
    names: dict[str, Answers], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names["s"] = lambda: ["::1", "10.0.0.1", "::1"]
    resolver = NameResolver("s", "5577")
    given = [until(resolver.next, "an address") for _ in range(4)]
    assert given == ["tcp://[::1]:5577", "tcp://10.0.0.1:5577"] * 2
    assert caplog.messages == ["s: trying tcp://[::1]:5577", "s: trying tcp://10.0.0.1:5577"]


def test_a_name_that_is_not_known_is_asked_for_again(
    names: dict[str, Answers], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    resolver = NameResolver("s", "1")
    assert resolver.next() is None
    until(lambda: resolver.next() or caplog.messages, "what came of it")
    assert caplog.messages == ["s: name or service not known; asking again"]
    names["s"] = lambda: ["10.0.0.1"]
    assert until(resolver.next, "an address") == "tcp://10.0.0.1:1"


def test_a_look_up_that_hangs_holds_nobody(names: dict[str, Answers]) -> None:
    answer = threading.Event()
    names["s"] = lambda: ["10.0.0.1"] if answer.wait(60) else []
    resolver = NameResolver("s", "1")
    assert [resolver.next() for _ in range(10)] == [None] * 10
    answer.set()
    assert until(resolver.next, "an address") == "tcp://10.0.0.1:1"


@pytest.mark.parametrize("before", [["::1"], ["127.9.9.9"], ["::1", "127.9.9.9"]])
def test_the_address_that_answers_is_found(
    names: dict[str, Answers], before: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    router = Router("tcp://127.0.0.1:*", None)
    names["s"] = lambda: [*before, "127.0.0.1"]
    dealer = Dealer(f"tcp://s:{router.endpoint.rpartition(':')[2]}")
    try:
        assert not dealer.send([b"hello"]), "nothing is known of the name yet"
        until(lambda: dealer.send([b"hello"]), "a connection")
        assert until(router.receive, "the message").frames[0] == b"hello"
        assert caplog.messages[-1].endswith(router.endpoint)
    finally:
        dealer.close()
        router.close()


def test_a_server_that_moved_is_found_at_its_new_address(names: dict[str, Answers]) -> None:
    router = Router("tcp://127.0.0.1:*", None)
    port = router.endpoint.rpartition(":")[2]
    names["s"] = lambda: ["127.0.0.1"]
    dealer = Dealer(f"tcp://s:{port}")
    until(lambda: dealer.send([b"here"]), "a connection")
    router.close()
    moved = Router(f"tcp://127.0.0.2:{port}", None)
    names["s"] = lambda: ["127.0.0.2"]
    try:
        until(lambda: dealer.send([b"there"]) and moved.receive(), "a message at the new address")
    finally:
        dealer.close()
        moved.close()


def test_a_servers_last_words_are_not_lost_to_the_search(
    names: dict[str, Answers], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    router = Router("tcp://127.0.0.1:*", None)
    names["s"] = lambda: ["127.0.0.1", "127.9.9.9"]
    dealer = Dealer(f"tcp://s:{router.endpoint.rpartition(':')[2]}")
    try:
        until(lambda: dealer.send([b"hello"]), "a connection")
        peer = until(router.receive, "the message").peer
        router.send(peer, [b"last words"])
        router.close()
        # As a worker does that computes: it beats, and does not look into its mailbox.
        until(lambda: not dealer.send([b"beat"]), "the end of the connection")
        for _ in range(20):
            dealer.send([b"beat"])
            time.sleep(0.02)
        assert until(dealer.receive, "the last words", seconds=1.0)[0] == b"last words"
        until(lambda: dealer.send([b"beat"]) or len(caplog.messages) > 1, "the search to go on")
    finally:
        dealer.close()


def test_why_there_is_no_connection(names: dict[str, Answers]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with contextlib.closing(Dealer(f"tcp://s:{port}")) as dealer:
        assert dealer.why_unreachable() == "the name s is not known (no name server has answered)"

        def becomes(why: str) -> None:
            until(lambda: dealer.send([b"hello"]) or dealer.why_unreachable() == why, why)

        becomes("the name s is not known (name or service not known)")
        names["s"] = lambda: ["127.0.0.1"]
        becomes("nothing accepts connections there")
    with contextlib.closing(Dealer(f"tcp://127.0.0.1:{port}")) as dealer:
        assert dealer.why_unreachable() == ""


@pytest.mark.parametrize("command", ["worker", "relay", "status", "health"])
def test_a_name_that_is_not_known_is_in_the_last_line(manychar: Commands, command: str) -> None:
    at = "tcp://nosuch.invalid:5577"
    done = manychar.run(command, at, "--connect-timeout", "1")
    said = r"no server at \S+ for \d+ s \(--connect-timeout\): the name nosuch.invalid is not known"
    assert done.code == 3
    assert re.search(rf"{said} \(.+\)$", done.last_line), done
