"""Ends connections that bring a message without an end.

libzmq hands a message over when its last frame is there, and has no limit to their number: a frame
of no bytes takes 2 on the wire and 64 in memory. So the bytes that libzmq took from each connection
are held against those of the messages that it handed over. What lies between is of a message that
has no end yet, or waits to be read, but for ZMTP's own commands, which are never handed over. A
connection that is further ahead than an honest peer can be is ended, and where the process's memory
grows by more than honest messages take, the furthest ones are, whatever they are.

An honest worker whose connection broke may still send a gradient on the next one, before it has a
shard there: where the network is slow, that can be ended too, and it sends the next one.
"""

import contextlib
import dataclasses
import errno
import math
from collections.abc import Callable

from manychar.network import tcp
from manychar.processes.malloc_tuning import Meter, give_freed_memory_back

LONG = 2**16  # bytes: more than a peer without a shard can have reason to send
WAITING = 2**18  # bytes of many small messages of such a peer that wait to be read
LONGEST_MESSAGE = 30.0  # seconds from when LONG of one is there until its end
COMMANDS_A_SECOND = 256  # bytes: heartbeats, encrypted, twice a second
MOST_COMMANDS = 2**13  # bytes between two messages
HANDSHAKE = 2**12  # bytes
SPARE = 2**27  # bytes that the process may grow by, whatever for
NOTABLE = 2**25  # bytes of memory
MEMORY_A_BYTE = 32  # of empty frames; of some others it is more
FREEING = 0.1  # seconds until what was ended has left memory
_NO_CONNECTION = {errno.EBADF, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.ENOTCONN}


@dataclasses.dataclass
class _Account:
    """One connection's bytes, and whose they are.

    At the last look `came` had come, by which it is known again, and `seen` had been taken;
    `accounted` are of messages that were handed over, or of commands, up to `heard`, a time. It is
    `ahead` by so many, and since `begun` by more than LONG of one message. Who was `leased` a shard
    may send long messages.
    """

    heard: float
    peer: bytes = b""
    leased: bool = False
    accounted: int = HANDSHAKE
    came: int = 0
    seen: int = 0
    ahead: int = 0
    begun: float = math.inf
    is_news: bool = False

    def credit_commands(self, taken: int, now: float) -> None:
        """Take as many bytes for commands as there can have been since a message was heard."""
        commands = min(int(COMMANDS_A_SECOND * (now - self.heard)), MOST_COMMANDS)
        self.accounted = min(self.accounted + commands, taken)
        self.heard, self.is_news = now, False


class Floods:
    """Keeps the accounts of one socket's connections, by file descriptor.

    `message` is how long a message can be, in bytes, `messages` how many of a peer's can wait to be
    read, `state` what the process may grow by meanwhile for its own work. `first` is the identity
    that the socket gave a peer before all that come.
    """

    def __init__(self, *, message: int, messages: int, state: int, first: bytes) -> None:
        self._one_message = LONG + message
        self._all_messages = LONG + messages * message
        self._spare = SPARE + state
        self._first, self._accepted = first, 0
        self._accounts: dict[int, _Account] = {}
        self._memory, self._ender = Meter(), tcp.Ender()
        self._private = self._floor = self._memory.private_bytes()
        self._free_at = self._patient_until = -math.inf
        self._give_back_at = math.inf
        self.on_end: Callable[[str], object] = lambda _: None

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._accounts)

    def close(self) -> None:
        """Keep no accounts any more."""
        self._memory.close()
        self._ender.close()

    def accepted(self, descriptor: int, now: float) -> None:
        """Open the account of a new connection."""
        self._accepted += 1
        if tcp.COUNTS:
            self._accounts[descriptor] = _Account(heard=now)

    def read(self, peer: bytes, descriptor: int, size: int, now: float) -> None:
        """Note that a peer's message, of `size` bytes on the wire, was handed over.

        A message of a connection that is gone may come when the descriptor is another's already.
        ROUTER numbers its peers, so the later one is known. Ours do not name themselves; who does,
        has no credit.
        """
        number = _number(peer, self._first)
        if (account := self._accounts.get(descriptor)) is None or number > self._accepted:
            return
        if account.peer != peer:
            if account.peer and number < _number(account.peer, self._first):
                return
            account.peer, account.accounted, account.leased = peer, HANDSHAKE, False
        account.accounted += size
        account.is_news = True

    def leased(self, peer: bytes) -> None:
        """Note that a peer has a shard, and will send its gradients."""
        for account in self._accounts.values():
            account.leased |= account.peer == peer

    def look(self, *, all_read: bool, now: float) -> None:
        """End who is too far ahead.

        `all_read` is that at some time since the last look no whole message waited to be read.
        """
        for descriptor, account in list(self._accounts.items()):
            try:
                self._count(descriptor, account, all_read=all_read, now=now)
            except OSError as error:
                if error.errno in _NO_CONNECTION:  # closed, or not TCP
                    del self._accounts[descriptor]
        for descriptor, account in list(self._accounts.items()):
            if self._is_too_far(account, all_read=all_read, now=now):
                self._end(descriptor, now)
        if now >= self._give_back_at:
            self._give_back_at = math.inf
            give_freed_memory_back()
        self._mind_the_memory(now)

    def _count(self, descriptor: int, account: _Account, *, all_read: bool, now: float) -> None:
        """Say how many bytes of a connection were taken and are of no message that was read.

        Where all was read since the last look, what had been taken by then is of one message.
        """
        came, taken, exact = tcp.counts(descriptor)
        if came < account.came:  # it is another connection's by now
            del self._accounts[descriptor]
            return
        account.ahead = max(0, (account.seen if all_read else taken) - account.accounted)
        stays = all_read and account.ahead > LONG
        account.begun = min(account.begun, now) if stays else math.inf
        if account.is_news and exact:
            account.credit_commands(taken, now)
        account.came, account.seen = came, max(taken, account.seen)

    def _is_too_far(self, account: _Account, *, all_read: bool, now: float) -> bool:
        if account.leased:
            most = self._one_message if all_read else self._all_messages
        else:
            most = LONG if all_read else WAITING
        return account.ahead > most or now - account.begun > LONGEST_MESSAGE

    def has_grown(self) -> bool:
        """Whether the process has grown notably since the last look."""
        return self._memory.private_bytes() > self._private + NOTABLE

    def _mind_the_memory(self, now: float) -> None:
        """End those that are ahead, the furthest first, where they take too much memory.

        Who has no shard goes before those with one; of these one goes, and another if that has not
        helped.
        """
        if (excess := self._excess(now)) <= 0:
            self._patient_until = now + FREEING
            return
        ahead = [
            (each.leased, -each.ahead, at) for at, each in self._accounts.items() if each.ahead
        ]
        for leased, less, descriptor in sorted(ahead):
            if leased and now < self._patient_until:
                return
            self._end(descriptor, now)
            excess += MEMORY_A_BYTE * less
            if leased:
                self._patient_until = now + FREEING
            if leased or excess <= 0:
                return

    def _excess(self, now: float) -> int:
        """Return by how many bytes the process has grown too much while messages have no end."""
        self._private = self._memory.private_bytes()
        total = sum(account.ahead for account in self._accounts.values())
        if total <= LONG and now >= self._free_at:
            if (
                self._private > self._floor + NOTABLE
            ):  # of one that has closed its connection, maybe
                give_freed_memory_back()
                self._private = self._memory.private_bytes()
            self._floor = self._private
        allowed = self._spare + 2 * min(total, self._all_messages)
        return self._private - self._floor - allowed

    def _end(self, descriptor: int, now: float) -> None:
        account = self._accounts[descriptor]
        with contextlib.suppress(OSError):  # it is gone, or there are too many open files: later
            if address := self._ender.reset(descriptor, at_least=account.came):
                self.on_end(address)
                self._free_at = now + FREEING
                self._give_back_at = min(self._give_back_at, now + FREEING / 2)
            del self._accounts[descriptor]


def _number(peer: bytes, first: bytes) -> int:
    """Return how many peers ROUTER numbered from the first one to this, in four bytes, in a ring.

    Where it starts nobody else knows, so an identity from elsewhere comes to any other number.
    """
    if len(peer) != len(first) or peer[0] != first[0]:
        return 2**32
    return (int.from_bytes(peer[1:], "big") - int.from_bytes(first[1:], "big")) % 2**32
