"""Connections are ended that are further ahead of their messages than an honest peer can be."""

import errno

import pytest

from manychar.network import flood, tcp
from manychar.network.flood import (
    COMMANDS_A_SECOND,
    FREEING,
    LONG,
    LONGEST_MESSAGE,
    MEMORY_A_BYTE,
    NOTABLE,
    SPARE,
    WAITING,
    Floods,
)
from manychar.network.tcp import Counts
from manychar.processes.malloc_tuning import Meter

pytestmark = pytest.mark.skipif(not tcp.COUNTS, reason="only Linux counts the bytes")

MESSAGE, MESSAGES, STATE = 400_000, 5, 1000
ONE, OTHER = 7, 8
FIRST = 2**32 - 3  # what ROUTER begins with; it counts in a ring
SPARE_FROM = 40_000_000  # bytes of memory before anyone came


def numbered(number: int) -> bytes:
    """Return a peer's identity as ROUTER makes it up."""
    return b"\0" + ((FIRST + number) % 2**32).to_bytes(4, "big")


class Wires:
    """Some connections as the kernel counts them, and a clock, as a test says them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken: dict[int, int] = {}
        self.came: dict[int, int] = {}
        self.inexact = 0
        self.reset: list[int] = []
        self.fault: int | None = None
        self.now = 1000.0
        self.private = SPARE_FROM
        patch.setattr(tcp, "counts", self._counts)
        patch.setattr(tcp.Ender, "reset", lambda _, *args, **named: self._reset(*args, **named))
        patch.setattr(Meter, "private_bytes", lambda _: self.private)
        patch.setattr(flood, "give_freed_memory_back", self._give_back)
        self.kept = 0
        self.floods = Floods(message=MESSAGE, messages=MESSAGES, state=STATE, first=numbered(0))
        self.said: list[str] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self.floods.on_end = self.said.append

    def connect(self, *descriptors: int, leased: bool = True, generation: int = 1) -> None:
        for descriptor in descriptors:
            self.taken[descriptor] = 0
            self.floods.accepted(descriptor, self.now)
            self.send(descriptor, 100, generation)
            if leased:
                self.floods.leased(self.peer(descriptor, generation))
        self.look(all_read=True)

    def peer(self, descriptor: int, generation: int = 1) -> bytes:
        """Return the identity of who had a descriptor, the first time or another time."""
        return numbered(self._numbers.setdefault((descriptor, generation), len(self._numbers) + 1))

    def send(self, descriptor: int, size: int, generation: int = 1) -> None:
        """Have a whole message come, and be handed over."""
        self.taken[descriptor] += size
        self.hand_over(descriptor, size, generation)

    def hand_over(self, descriptor: int, size: int, generation: int = 1) -> None:
        self.floods.read(self.peer(descriptor, generation), descriptor, size, self.now)

    def look(self, *, all_read: bool, times: int = 1) -> None:
        for _ in range(times):
            self.floods.look(all_read=all_read, now=self.now)
            self.now += 0.025

    def _give_back(self) -> None:
        self.private -= self.kept
        self.kept = 0

    def _counts(self, descriptor: int) -> Counts:
        if descriptor not in self.taken:
            raise OSError(errno.EBADF, "closed")
        taken = self.taken[descriptor]
        return Counts(self.came.get(descriptor, taken), taken - self.inexact, not self.inexact)

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
            for _ in range(MESSAGES):
                wires.send(ONE, MESSAGE)
            wires.look(all_read=True)
        assert wires.reset == []

    def test_is_between_two_messages_at_every_look(self, wires: Wires) -> None:
        """What is handed over later is what was seen before: nothing is counted twice."""
        for _ in range(100):
            wires.taken[ONE] += MESSAGE
            wires.look(all_read=True, times=2)
            wires.hand_over(ONE, MESSAGE)
        assert wires.reset == []

    def test_may_have_several_messages_wait(self, wires: Wires) -> None:
        wires.taken[ONE] += MESSAGE * MESSAGES
        wires.look(all_read=False, times=3)
        assert wires.reset == []

    def test_may_wait_for_a_loop_that_waits_for_its_disk(self, wires: Wires) -> None:
        wires.taken[ONE] += MESSAGE
        wires.look(all_read=True, times=3)
        wires.look(all_read=False, times=2 * int(LONGEST_MESSAGE / 0.025))
        wires.look(all_read=False)
        assert wires.reset == []

    def test_may_have_no_shard_and_many_small_messages_wait(self, wires: Wires) -> None:
        wires.connect(OTHER, leased=False)
        wires.taken[OTHER] += WAITING
        wires.look(all_read=False, times=3)
        assert wires.reset == []

    @pytest.mark.parametrize("leased", [True, False])
    def test_beats_for_hours(self, wires: Wires, *, leased: bool) -> None:
        """ZMTP's own heartbeats are never handed over; its messages are, every five seconds."""
        wires.connect(OTHER, leased=leased)
        for _ in range(2000):
            wires.now += 5.0
            wires.taken[OTHER] += 5 * 164
            wires.look(all_read=True)
            wires.send(OTHER, 200)
            wires.look(all_read=True)
        assert wires.reset == []

    def test_that_is_given_another_ones_descriptor(self, wires: Wires) -> None:
        wires.send(ONE, 10 * MESSAGE)
        wires.look(all_read=True)
        wires.connect(ONE, generation=2)
        wires.send(ONE, MESSAGE, 2)
        wires.look(all_read=True, times=3)
        assert wires.reset == []

    def test_that_has_it_while_the_former_ones_messages_are_read(self, wires: Wires) -> None:
        wires.taken[ONE] = 0
        wires.floods.accepted(ONE, wires.now)
        wires.hand_over(ONE, MESSAGE)
        wires.send(ONE, 500, 2)
        wires.hand_over(ONE, MESSAGE)
        wires.look(all_read=True, times=3)
        assert wires.reset == []

    def test_has_not_its_shard(self, wires: Wires) -> None:
        wires.connect(ONE, leased=False, generation=2)
        wires.taken[ONE] += LONG + 10_000
        wires.look(all_read=True, times=2)
        assert wires.reset == [ONE]

    def test_has_not_the_shard_that_came_late(self, wires: Wires) -> None:
        wires.taken[ONE] = 0
        wires.floods.accepted(ONE, wires.now)
        wires.hand_over(ONE, 100)
        wires.floods.leased(wires.peer(ONE))
        wires.send(ONE, 100, 2)
        wires.taken[ONE] += LONG + 10_000
        wires.look(all_read=True, times=2)
        assert wires.reset == [ONE]

    def test_between_two_looks(self, wires: Wires) -> None:
        """It has the descriptor of one that was about to be ended."""
        wires.taken[ONE] = 3 * MESSAGE
        wires.look(all_read=True)
        wires.taken[ONE] = MESSAGE
        wires.look(all_read=True, times=2)
        assert wires.reset == []

    def test_whose_bytes_come_between_the_kernels_answers(self, wires: Wires) -> None:
        for _ in range(100):
            wires.send(ONE, MESSAGE)
            wires.inexact = 65_483
            wires.look(all_read=True)
            wires.inexact = 0
            wires.look(all_read=True, times=2)
        assert wires.reset == []

    def test_sends_a_gradient_while_the_process_grows_for_its_own_reasons(
        self, wires: Wires
    ) -> None:
        wires.taken[ONE] += MESSAGE
        wires.private += SPARE + STATE + 2 * MESSAGE
        wires.look(all_read=True, times=3)
        wires.hand_over(ONE, MESSAGE)
        wires.look(all_read=True)
        wires.private *= 10
        wires.look(all_read=True)
        wires.taken[ONE] += MESSAGE
        wires.look(all_read=True, times=3)
        assert wires.reset == []


class TestOneThatIsEnded:
    def test_comes_to_no_end(self, wires: Wires) -> None:
        """It stays below every bound, and sends a frame now and then."""
        wires.taken[ONE] += LONG + 5000
        for _ in range(3):
            wires.look(all_read=True)
            wires.taken[ONE] += 2
        assert wires.reset == []
        wires.now += LONGEST_MESSAGE
        wires.look(all_read=True)
        assert wires.reset == [ONE]

    def test_sends_a_message_without_end(self, wires: Wires) -> None:
        wires.taken[ONE] += LONG + MESSAGE + 100
        wires.look(all_read=True)
        assert wires.reset == []  # it may have ended between the reading and the look
        wires.look(all_read=True)
        assert (wires.reset, wires.said) == ([ONE], ["peer 7"])

    def test_has_no_shard(self, wires: Wires) -> None:
        wires.connect(OTHER, leased=False)
        wires.taken[OTHER] += LONG + 100
        wires.look(all_read=True, times=2)
        assert wires.reset == [OTHER]

    @pytest.mark.parametrize("name", [b"\0abcd", b"A", b"\1" + numbered(1)[1:], numbered(3)])
    def test_names_itself(self, wires: Wires, name: bytes) -> None:
        """It could take the place of whoever has its descriptor next."""
        wires.taken[OTHER] = 0
        wires.floods.accepted(OTHER, wires.now)
        for _ in range(LONG // 1000 + 5):
            wires.taken[OTHER] += 1000
            wires.floods.read(name, OTHER, 1000, wires.now)
            wires.look(all_read=True, times=2)
        assert wires.reset == [OTHER]

    def test_hides_it_behind_short_messages(self, wires: Wires) -> None:
        """Each time some bytes of the next message are there when one is read."""
        wires.connect(OTHER, leased=False)
        for _ in range(1000):
            wires.send(OTHER, 100)
            wires.taken[OTHER] += 100
            wires.look(all_read=True, times=2)
            wires.hand_over(OTHER, 100)
        wires.taken[OTHER] += LONG + 10_000
        wires.look(all_read=True, times=2)
        assert wires.reset == [OTHER]

    def test_sent_a_short_one_at_the_same_time(self, wires: Wires) -> None:
        wires.connect(OTHER, leased=False)
        wires.send(OTHER, 100)
        wires.taken[OTHER] += LONG + 10_000
        wires.look(all_read=True, times=2)
        assert wires.reset == [OTHER]

    def test_sends_more_than_can_be_read(self, wires: Wires) -> None:
        wires.send(ONE, MESSAGE)
        wires.taken[ONE] += LONG + MESSAGE * MESSAGES + 100
        wires.look(all_read=False)
        assert wires.reset == [ONE]

    def test_is_looked_at_again_where_it_could_not_be_ended(self, wires: Wires) -> None:
        wires.taken[ONE] += 2 * MESSAGE
        wires.fault = errno.EMFILE
        wires.look(all_read=True, times=3)
        wires.fault = None
        wires.look(all_read=True)
        assert wires.reset == [ONE]

    def test_leaves_no_account(self, wires: Wires) -> None:
        wires.taken[ONE] += 2 * MESSAGE
        wires.look(all_read=True, times=3)
        wires.look(all_read=False)
        assert wires.reset == [ONE]
        assert len(wires.floods) == 0


class TestMemory:
    """Ten are a little ahead, five of them with a shard, and the process grows too much."""

    @pytest.fixture
    def many(self, wires: Wires) -> Wires:
        wires.connect(*range(10, 15), leased=False)
        wires.connect(*range(15, 20))
        for descriptor in range(10, 20):
            wires.taken[descriptor] += 50_000 - descriptor
        wires.look(all_read=True, times=2)
        assert wires.reset == []
        return wires

    def grow(self, wires: Wires, by: int) -> None:
        ahead = sum(min(50_000 - each, LONG) for each in range(10, 20))
        wires.private += SPARE + STATE + 2 * ahead + by

    def test_ends_as_many_without_a_shard_as_free_it(self, many: Wires) -> None:
        self.grow(many, 2 * 49_000 * MEMORY_A_BYTE)
        many.look(all_read=True)
        assert many.reset == [10, 11]

    def test_ends_one_with_a_shard_and_another_if_that_did_not_help(self, many: Wires) -> None:
        self.grow(many, 10**9)
        many.look(all_read=True)
        assert many.reset == [10, 11, 12, 13, 14]
        many.look(all_read=True, times=int(FREEING / 0.025) - 1)
        assert len(many.reset) == 5
        many.look(all_read=True, times=2)
        assert many.reset[5:] == [15]
        many.look(all_read=True, times=int(FREEING / 0.025) + 1)
        assert many.reset[5:] == [15, 16]

    def test_is_measured_from_when_nobody_was_ahead(self, many: Wires) -> None:
        for descriptor in range(10, 20):
            many.hand_over(descriptor, 50_000 - descriptor)
        self.grow(many, 10**9)
        many.look(all_read=True)
        for descriptor in range(10, 20):
            many.taken[descriptor] += 50_000
        many.look(all_read=True, times=3)
        assert many.reset == []
        many.private += NOTABLE
        assert not many.floods.has_grown()
        many.private += 1
        assert many.floods.has_grown()

    def test_of_those_that_are_gone_is_given_back(self, many: Wires) -> None:
        """They close their connections before anybody ends them, again and again."""
        for descriptor in range(10, 20):
            del many.taken[descriptor]
        many.kept = SPARE // 2
        many.private += many.kept
        many.look(all_read=True)
        assert many.private == SPARE_FROM

    def test_that_is_not_of_messages_ends_nobody(self, many: Wires) -> None:
        for descriptor in range(10, 20):
            many.hand_over(descriptor, 50_000 - descriptor)
        many.look(all_read=True)
        self.grow(many, 10**9)
        many.look(all_read=True, times=3)
        assert many.reset == []


def test_commands_are_fewer_than_what_is_allowed_for_them() -> None:
    """Encrypted, a PING and a PONG: RFC 37 and RFC 26, twice a second."""
    assert COMMANDS_A_SECOND > 2 * (9 + 7 + 2 * (33 + 2))
