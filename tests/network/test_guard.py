"""The guard's thread over real sockets: whose bytes are whose, when it looks, what it tells."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from manychar.network import guard, keys, tcp
from manychar.network.flood import COMMANDS_A_SECOND, LONG, Floods
from manychar.network.guard import Guard
from manychar.network.transport import CURVE_FRAME, SHORT, Dealer, Router, first_identity
from manychar.protocol.messages import Peer
from tests.commands import until
from tests.network.test_hostile import FRAME_WITH_MORE, handshake_without_keys

pytestmark = pytest.mark.skipif(not tcp.COUNTS, reason="only Linux counts the bytes")

MESSAGE, MESSAGES = 400_000, 3


class Watched:
    """A ROUTER that is guarded, and a DEALER that is connected to it. Looks are taken by hand."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.router, self.dealer = self.context.socket(zmq.ROUTER), self.context.socket(zmq.DEALER)
        first = first_identity(self.context, self.router)
        floods = Floods(message=MESSAGE, messages=MESSAGES, state=0, first=first)
        self.guard = Guard(self.context, self.router, floods)
        self.router.bind("tcp://127.0.0.1:0")
        self.endpoint = self.router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.dealer.connect(self.endpoint)

    def send(self, *sizes: int) -> None:
        """Send a message, and have the guard know of it as the server's loop would."""
        self.dealer.send_multipart([bytes(size) for size in sizes])
        peer, *_, last = self.router.recv_multipart(copy=False)
        self.guard.handed_over(peer.bytes, int(last.get(zmq.SRCFD)), sum(sizes) + 9 * len(sizes))
        self.peer: Peer = peer.bytes

    def close(self) -> None:
        self.guard.close()
        self.dealer.close(0)
        self.router.close(0)
        self.context.term()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    for pause in ("IDLE_EVERY", "LOOK_EVERY"):
        monkeypatch.setattr(guard, pause, 3600.0)
    made = Watched()
    yield made
    made.close()


def look(watched: Watched) -> None:
    watched.guard.look(time.monotonic())


def test_what_is_read_ends_nobody(watched: Watched) -> None:
    for _ in range(20):
        watched.send(100, MESSAGE)
        watched.guard.all_read()
        look(watched)
    assert watched.guard.ended() == []


def test_what_waits_to_be_read_is_of_one_who_has_a_shard(watched: Watched) -> None:
    watched.send(100)
    watched.guard.leased(watched.peer)
    look(watched)
    for _ in range(MESSAGES):
        watched.dealer.send(bytes(MESSAGE))
    assert watched.router.poll(30_000)
    for _ in range(3):
        look(watched)
    assert watched.guard.ended() == []


def test_one_without_a_shard_has_no_long_message(watched: Watched) -> None:
    watched.send(100)
    with handshake_without_keys(int(watched.endpoint.rsplit(":", 1)[1])) as other:
        other.sendall(FRAME_WITH_MORE * LONG)

        def ended() -> list[str]:
            watched.guard.all_read()
            look(watched)
            return watched.guard.ended()

        address = until(ended, "the end of the connection")
        assert address == [f"127.0.0.1:{other.getsockname()[1]}"]
    watched.send(100)


def test_what_came_after_the_flag_waits_to_be_read(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop finds nothing, whole messages come, and it is at other things for two looks."""
    watched.send(100)
    watched.guard.leased(watched.peer)
    look(watched)
    follow = watched.guard._follow_events

    def meanwhile(now: float) -> None:
        watched.guard.all_read()
        for _ in range(MESSAGES):
            watched.dealer.send(bytes(MESSAGE))
        assert watched.router.poll(30_000)
        time.sleep(0.2)
        follow(now)

    monkeypatch.setattr(watched.guard, "_follow_events", meanwhile)
    look(watched)
    monkeypatch.setattr(watched.guard, "_follow_events", follow)
    look(watched)
    assert watched.guard.ended() == []


PEER_GONE_WITH_MESSAGES_UNREAD = """
import socket, sys, time
from manychar.network.transport import HEARTBEAT_MS, Router
from tests.network.test_hostile import handshake_without_keys
router = Router("tcp://127.0.0.1:0", None)
visitor = handshake_without_keys(int(router.endpoint.rsplit(":", 1)[1]))
visitor.sendall(b"\\x00\\x01x" * 2_000)
while router.socket.poll(0) == 0:
    pass
time.sleep(0.1)
visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0)) + bytes(4))
visitor.close()
time.sleep(2 * HEARTBEAT_MS / 1000)
while router.receive() is not None:
    pass
router.close()
"""


def test_a_peer_that_goes_with_messages_unread_ends_nobody() -> None:
    """libzmq would end the process at its next heartbeat, if the server sent any."""
    done = subprocess.run([sys.executable, "-c", PEER_GONE_WITH_MESSAGES_UNREAD], check=False)
    assert done.returncode == 0


def test_of_a_machine_that_is_gone_tcp_itself_tells() -> None:
    router = Router("tcp://127.0.0.1:0", None)
    with handshake_without_keys(int(router.endpoint.rsplit(":", 1)[1])):
        accounts = router.guard._floods._accounts
        until(lambda: accounts, "the connection's account")
        (descriptor,) = accounts
        connection = socket.socket(fileno=os.dup(descriptor))
    with connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for option, expected in (
            (socket.TCP_KEEPIDLE, 5),
            (socket.TCP_KEEPINTVL, 5),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, 20_000),
        ):
            assert connection.getsockopt(socket.IPPROTO_TCP, option) == expected
    router.close()


def test_a_fault_of_it_is_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "IDLE_EVERY", 0.0)
    monkeypatch.setattr(Floods, "look", lambda *_, **__: 1 // 0)
    router = Router("tcp://127.0.0.1:0", None)
    router.guard._thread.join()
    with pytest.raises(ZeroDivisionError):
        router.guard.ended()
    router.close()


@pytest.mark.parametrize("secured", [False, True])
def test_messages_are_as_long_as_they_are_on_the_wire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, secured: bool
) -> None:
    folder = tmp_path / "keys"
    key = keys.read_client_key(keys.create(folder)) if secured else None
    router = Router("tcp://127.0.0.1:0", None, folder if secured else None)
    dealer = Dealer(router.endpoint, key)
    noted: list[tuple[Peer, int, int]] = []
    hand_over = router.guard.handed_over

    def noting(peer: Peer, descriptor: int, size: int) -> None:
        noted.append((peer, descriptor, size))
        hand_over(peer, descriptor, size)

    monkeypatch.setattr(router.guard, "handed_over", noting)

    def sent(*sizes: int) -> bool:
        if router.door is not None:
            router.door.answer()
        return dealer.send([bytes(size) for size in sizes])

    def received() -> bool:
        return router.receive() is not None

    until(lambda: sent(1), "a connection")
    until(received, "a message")
    descriptor = noted[0][1]
    before, began = tcp.counts(descriptor).taken, time.monotonic()
    edge = SHORT - CURVE_FRAME
    sizes = [0, 1, edge, edge + 1, SHORT, SHORT + 1, 3000]
    for _ in range(30):
        assert sent(*sizes)
        until(received, "a message")
    taken = tcp.counts(descriptor).taken - before
    commands = taken - sum(size for _, _, size in noted[1:])
    assert 0 <= commands < 300 + COMMANDS_A_SECOND * (time.monotonic() - began)
    dealer.close()
    router.close()
