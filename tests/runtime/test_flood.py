"""Connections are ended that are further ahead of their messages than an honest peer can be."""

import errno
import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from manychar.runtime import flood
from manychar.runtime.flood import SLACK, Floods

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes")

MESSAGE, MESSAGES = 1000, 5
ONE, OTHER = 7, 8


class Wires:
    """The kernel's counts of some connections, as a test says them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken: dict[int, int] = {}
        self.came: dict[int, int] = {}
        self.reset: list[int] = []
        self.fault: int | None = None
        patch.setattr(flood, "_bytes", self._bytes)
        patch.setattr(flood, "_reset", self._reset)
        self.floods = Floods(message=MESSAGE, messages=MESSAGES)

    def connect(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            self.taken[descriptor] = 0
            self.floods.accepted(descriptor)

    def _bytes(self, descriptor: int) -> tuple[int, int]:
        if descriptor not in self.taken:
            raise OSError(errno.EBADF, "closed")
        taken = self.taken[descriptor]
        return self.came.get(descriptor, taken), taken

    def _reset(self, descriptor: int, *, at_least: int) -> str:
        if self.fault is not None:
            raise OSError(self.fault, "no")
        if self.taken[descriptor] < at_least:
            return ""
        self.reset.append(descriptor)
        return f"peer {descriptor}"


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Wires:
    made = Wires(monkeypatch)
    made.connect(ONE)
    return made


class TestAnHonestPeer:
    def test_sends_messages_that_are_read(self, wires: Wires) -> None:
        for _ in range(100):
            wires.taken[ONE] += MESSAGE * MESSAGES
            for _ in range(MESSAGES):
                wires.floods.read(ONE, MESSAGE)
            wires.floods.look(all_read=True)
        assert wires.reset == []

    def test_may_have_several_messages_wait(self, wires: Wires) -> None:
        wires.taken[ONE] = SLACK + MESSAGE * MESSAGES
        for _ in range(3):
            wires.floods.look(all_read=False)
        assert wires.reset == []

    def test_may_send_before_its_account_is_open(self, wires: Wires) -> None:
        for _ in range(4):
            wires.floods.read(OTHER, SLACK)
        wires.connect(OTHER)
        wires.taken[OTHER] = 4 * SLACK
        for all_read in (False, True, True, True):
            wires.floods.look(all_read=all_read)
        assert wires.reset == []

    def test_may_be_idle_for_hours(self, wires: Wires) -> None:
        """ZMTP's own heartbeats, 16 bytes twice a second, are never handed over."""
        for _ in range(8):
            wires.taken[ONE] += 2 * 16 * 3600
            wires.floods.look(all_read=True)
        wires.floods.read(ONE, 50)
        wires.floods.look(all_read=True)
        wires.taken[ONE] += SLACK
        wires.floods.look(all_read=True)
        wires.floods.look(all_read=True)
        assert wires.reset == []

    def test_that_is_given_another_ones_descriptor(self, wires: Wires) -> None:
        wires.taken[ONE] = 10 * SLACK
        wires.floods.read(ONE, 10 * SLACK)
        wires.floods.look(all_read=True)
        wires.connect(ONE)
        wires.taken[ONE] = MESSAGE
        for _ in range(3):
            wires.floods.look(all_read=True)
        assert wires.reset == []

    def test_between_two_looks(self, wires: Wires) -> None:
        """It has the descriptor of one that was about to be ended."""
        wires.taken[ONE] = 3 * SLACK
        wires.floods.look(all_read=True)
        wires.taken[ONE] = MESSAGE
        wires.floods.look(all_read=True)
        wires.floods.look(all_read=True)
        assert wires.reset == []

    def test_whose_bytes_come_between_the_kernels_two_answers(self, wires: Wires) -> None:
        wires.taken[ONE] = wires.came[ONE] = 9 * SLACK
        wires.floods.read(ONE, 9 * SLACK)
        wires.floods.look(all_read=True)
        wires.taken[ONE] -= 65_483
        for _ in range(3):
            wires.floods.look(all_read=True)
        assert wires.reset == []

    def test_that_has_a_descriptor_again_and_sends_at_once(self, wires: Wires) -> None:
        wires.floods.read(ONE, 2 * SLACK)
        wires.connect(ONE)
        wires.taken[ONE] = 2 * SLACK
        for _ in range(3):
            wires.floods.look(all_read=True)
        assert wires.reset == []


class TestOneThatIsEnded:
    def test_comes_to_no_end(self, wires: Wires, monkeypatch: pytest.MonkeyPatch) -> None:
        """It stays below every bound, and sends a frame now and then."""
        wires.taken[ONE] = flood.LONG + 1
        for _ in range(3):
            wires.floods.look(all_read=True)
            wires.taken[ONE] += 2
        assert wires.reset == []
        monkeypatch.setattr(flood, "LONGEST_MESSAGE", 0.0)
        wires.floods.look(all_read=True)
        assert wires.reset == [ONE]

    def test_sends_a_message_without_end(self, wires: Wires) -> None:
        wires.taken[ONE] = SLACK + MESSAGE + 1
        wires.floods.look(all_read=True)
        assert wires.reset == []  # it may have ended between the reading and the look
        wires.floods.look(all_read=True)
        assert wires.reset == [ONE]
        assert (wires.floods.ended(), wires.floods.ended()) == (["peer 7"], [])

    def test_sends_more_than_can_be_read(self, wires: Wires) -> None:
        wires.floods.read(ONE, MESSAGE)
        wires.taken[ONE] = SLACK + MESSAGE * (MESSAGES + 1) + 1
        wires.floods.look(all_read=False)
        assert wires.reset == [ONE]

    def test_is_the_furthest_of_many(self, wires: Wires) -> None:
        wires.connect(*range(10, 20))
        for descriptor in range(10, 20):
            wires.taken[descriptor] = (SLACK + MESSAGE * MESSAGES) // 2 - descriptor
        for _ in range(2):
            wires.floods.look(all_read=True)
        assert wires.reset == [10, 11, 12, 13, 14, 15]

    def test_is_looked_at_again_where_it_could_not_be_ended(self, wires: Wires) -> None:
        wires.taken[ONE] = 2 * SLACK
        wires.fault = errno.EMFILE
        for _ in range(3):
            wires.floods.look(all_read=True)
        wires.fault = None
        wires.floods.look(all_read=True)
        assert wires.reset == [ONE]

    def test_leaves_no_account(self, wires: Wires) -> None:
        wires.taken[ONE] = 2 * SLACK
        for _ in range(3):
            wires.floods.look(all_read=True)
        wires.floods.look(all_read=False)
        assert wires.reset == [ONE]


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    address = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    with socket.create_server((address, 0), family=request.param) as server:
        there = socket.create_connection(server.getsockname()[:2])
        here, _ = server.accept()
    there.settimeout(30.0)
    with here, there:
        yield here, there


class TestTheKernel:
    def test_counts_what_was_read(self, pair: tuple[socket.socket, socket.socket]) -> None:
        here, there = pair
        there.sendall(bytes(1000))
        assert len(here.recv(400, socket.MSG_WAITALL)) == 400
        assert flood._bytes(here.fileno()) == (1000, 400)
        assert len(here.recv(600, socket.MSG_WAITALL)) == 600
        assert flood._bytes(here.fileno()) == (1000, 1000)

    def test_ends_a_connection_at_once(self, pair: tuple[socket.socket, socket.socket]) -> None:
        here, there = pair
        there.sendall(bytes(1000))
        assert here.recv(1000, socket.MSG_WAITALL)
        assert flood._reset(here.fileno(), at_least=1001) == ""
        there.sendall(bytes(10))
        address = flood._reset(here.fileno(), at_least=1000)
        assert address.endswith(f":{there.getsockname()[1]}")
        with pytest.raises(ConnectionResetError):
            there.recv(1)

    @pytest.mark.parametrize("made", [lambda: socket.socket(socket.AF_UNIX), socket.socket])
    def test_has_no_counts_of_another_kind(self, made: Callable[[], socket.socket]) -> None:
        with made() as other:
            if other.family == socket.AF_INET:
                descriptor = other.detach()
                socket.close(descriptor)
            else:
                descriptor = other.fileno()
            with pytest.raises(OSError, match=r"Errno (9|88|95)") as raised:
                flood._bytes(descriptor)
        assert raised.value.errno in flood._NO_CONNECTION
