"""Ends connections that bring a message without an end.

libzmq hands a message over when its last frame is there, and has no limit to their number: a frame
of no bytes takes 2 on the wire and 64 in memory. So the bytes that libzmq took from each connection
are held against those of the messages that it handed over. What lies between is of a message that
has no end yet, or waits to be read, but for ZMTP's own commands, which are never handed over. A
connection that is further ahead than an honest peer can be is ended, and where the process's memory
grows by more than honest messages take, the furthest ones are, whatever they are.
"""

import contextlib
import dataclasses
import errno
import math
from collections.abc import Callable, Iterable

from manychar.runtime import memory, tcp

LONG = 2**16  # bytes: more than a peer without a shard can have reason to send
WAITING = 2**20  # of many small messages of such a peer that wait to be read
LONGEST_MESSAGE = 30.0  # seconds from when so much of one is there until its end
COMMANDS_A_SECOND = 256  # bytes: heartbeats, encrypted, twice a second each way
HANDSHAKE = 16.0  # seconds' worth of them
MOST_COMMANDS = 2**13
SPARE = 2**27  # bytes that the process may grow by, whatever for
MEMORY_A_BYTE = 32  # of empty frames
FREEING = 0.2  # seconds until what was ended has left memory
_NO_CONNECTION = {errno.EBADF, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.ENOTCONN}


@dataclasses.dataclass
class _Account:
    """One connection's bytes, and whose they are.

    At the last look `came` had come and `seen` had been taken; `accounted` are of messages that
    were handed over, or of commands, up to `heard`, a time. It is `ahead` by so many, and since
    `begun` by more than LONG. Who was `leased` a shard may send long messages.
    """

    heard: float
    peer: bytes = b""
    leased: bool = False
    accounted: int = 0
    came: int = 0
    seen: int = 0
    ahead: int = 0
    begun: float = math.inf
    is_news: bool = False


class Floods:
    """Keeps the accounts of one socket's connections, by file descriptor.

    `message` is how long a message can be, in bytes, `messages` how many of a peer's can wait to be
    read, `state` what the process may grow by meanwhile for its own work.
    """

    def __init__(self, *, message: int, messages: int, state: int) -> None:
        self._one = LONG + message
        self._several = LONG + messages * message
        self._spare = SPARE + state
        self._accounts: dict[int, _Account] = {}
        self._floor = memory.private_bytes()
        self._freeing = 0
        self._free_at = -math.inf
        self.ended: Callable[[str], object] = lambda _: None

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._accounts)

    def accepted(self, descriptor: int, now: float) -> None:
        """Open the account of a new connection."""
        if tcp.COUNTS:
            self._accounts[descriptor] = _Account(heard=now - HANDSHAKE)

    def read(self, peer: bytes, descriptor: int, size: int, now: float) -> None:
        """Note that a peer's message, of `size` bytes on the wire, was handed over.

        A message of a connection that is gone may come when the descriptor is another's already:
        libzmq numbers its peers, so the later one is known.
        """
        if (account := self._accounts.get(descriptor)) is None:
            return
        if account.peer != peer:
            if account.peer and not _is_later(peer, account.peer):
                return
            account.peer, account.accounted, account.heard = peer, 0, now - HANDSHAKE
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
        if account.is_news and exact:
            commands = min(COMMANDS_A_SECOND * (now - account.heard), MOST_COMMANDS)
            account.accounted = min(account.accounted + int(commands), taken)
            account.heard, account.is_news = now, False
        account.came, account.seen = came, max(taken, account.seen)
        account.begun = min(account.begun, now) if account.ahead > LONG else math.inf

    def _is_too_far(self, account: _Account, *, all_read: bool, now: float) -> bool:
        if account.leased:
            most = self._one if all_read else self._several
        else:
            most = LONG if all_read else WAITING
        return account.ahead > most or now - account.begun > LONGEST_MESSAGE

    def _mind_the_memory(self, now: float) -> None:
        """End the furthest ones, those without a shard first, where they take too much memory."""
        private, total = memory.private_bytes(), sum(self._sizes())
        if now >= self._free_at:
            self._freeing = 0
        if total <= LONG and not self._freeing:
            self._floor = private
        excess = private - self._floor - self._freeing
        excess -= self._spare + 2 * min(total, self._several)
        order = sorted(self._accounts.items(), key=lambda each: (each[1].leased, -each[1].ahead))
        for descriptor, account in order:
            if excess <= 0:
                return
            if account.ahead:
                excess -= MEMORY_A_BYTE * account.ahead
                self._end(descriptor, now)

    def _sizes(self) -> Iterable[int]:
        return (account.ahead for account in self._accounts.values())

    def _end(self, descriptor: int, now: float) -> None:
        account = self._accounts[descriptor]
        with contextlib.suppress(OSError):  # it is gone, or there are too many open files: later
            if address := tcp.reset(descriptor, at_least=account.came):
                self.ended(address)
                self._freeing += MEMORY_A_BYTE * account.ahead
                self._free_at = now + FREEING
            del self._accounts[descriptor]


def _is_later(peer: bytes, other: bytes) -> bool:
    """Whether a peer came after another: ROUTER numbers them in the last four bytes, in a ring."""
    numbers = (int.from_bytes(each[-4:], "big") for each in (peer, other))
    return 0 < (next(numbers) - next(numbers)) % 2**32 < 2**31
