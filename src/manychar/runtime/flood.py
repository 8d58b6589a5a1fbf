"""Ends connections that bring a message without an end.

libzmq hands a message over when its last frame is there, and has no limit to their number: a frame
of no bytes takes 2 on the wire and 64 in memory. So the bytes that libzmq took from each connection
(those that came, which Linux counts in TCP_INFO, but for what it has not read yet) are held against
those of the messages that it handed over. A connection that is further ahead than an honest peer
can be is ended, and libzmq frees what it had of it.
"""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import math
import os
import socket
import struct
import sys
import termios
import time

LOOK_EVERY = 0.025
IDLE_EVERY = 0.1  # where nobody is connected
SHARE_OF_TIME = 0.05  # that looking may take where there are very many connections
LONG = 2**16  # bytes
LONGEST_MESSAGE = 30.0  # seconds from when so much of one is there until its end
SLACK = 2**20  # bytes: heartbeats of ZMTP are never handed over, and those of hours are small
_BYTES_RECEIVED = struct.Struct("@128xQ")  # tcpi_bytes_received in struct tcp_info
_INT = struct.Struct("@i")
_NO_CONNECTION = {errno.EBADF, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.ENOTCONN}


@dataclasses.dataclass
class _Account:
    """One connection's bytes: `settled` had been taken when all was read, `read` is what was since.

    At the last look `came` had come, and `seen` had been taken. Since `begun`, a time, more than
    LONG of one message is there.
    """

    settled: int = 0
    read: int = 0
    came: int = 0
    seen: int = 0
    begun: float = math.inf


class Floods:
    """Keeps the accounts of one socket's connections, by file descriptor.

    `message` is how long a message can be, in bytes, `messages` how many of a peer's can wait to be
    read. `look_at` is when the next look is due, of the monotonic clock.
    """

    def __init__(self, *, message: int, messages: int) -> None:
        self._one = SLACK + message
        self._several = SLACK + messages * message
        self._accounts: dict[int, _Account] = {}
        self._early: dict[int, int] = {}
        self._ended: list[str] = []
        self.look_at = 0.0

    def accepted(self, descriptor: int) -> None:
        """Open the account of a new connection."""
        if sys.platform == "linux":
            former = self._accounts.get(descriptor)  # what was read lately may be of the new one
            read = former.read if former else self._early.pop(descriptor, 0)
            self._accounts[descriptor] = _Account(read=read)

    def read(self, descriptor: int, size: int) -> None:
        """Note that a message of `size` bytes was handed over; maybe before its account is open."""
        if (account := self._accounts.get(descriptor)) is not None:
            account.read += size
        else:
            self._early[descriptor] = self._early.get(descriptor, 0) + size

    def look(self, *, all_read: bool) -> None:
        """End who is too far ahead; `all_read` is that no whole message waits to be read."""
        began = time.monotonic()
        self._early.clear()
        ahead = self._ahead(all_read=all_read, now=began)
        total = sum(ahead.values())
        allowed = self._one if all_read else self._several
        for descriptor, size in sorted(ahead.items(), key=lambda item: -item[1]):
            slow = self._accounts[descriptor].begun < began - LONGEST_MESSAGE
            if size > allowed or total > 2 * self._several or slow:
                total -= size
                self._end(descriptor)
        ended = time.monotonic()
        pause = LOOK_EVERY if self._accounts else IDLE_EVERY
        self.look_at = ended + max(pause, (ended - began) / SHARE_OF_TIME)

    def _ahead(self, *, all_read: bool, now: float) -> dict[int, int]:
        """Return how many bytes of each connection were taken and not handed over.

        Where all was read, and nothing of a connection since the last look, all that had been taken
        of it by then is of one message.
        """
        found = {}
        for descriptor, account in list(self._accounts.items()):
            try:
                came, taken = _bytes(descriptor)
            except OSError as error:
                if error.errno in _NO_CONNECTION:  # closed, or not TCP
                    del self._accounts[descriptor]
                continue
            if came < account.came:  # it is another connection's by now
                self._accounts[descriptor] = _Account(came=came, seen=taken, settled=taken)
                continue
            taken = max(taken, account.seen)  # bytes may come between the kernel's two answers
            if not all_read:
                found[descriptor] = taken - account.settled - account.read
            elif account.read:
                account.settled, account.read, account.begun = taken, 0, math.inf
            else:
                found[descriptor] = size = account.seen - account.settled
                account.begun = min(account.begun, now) if size > LONG else math.inf
            account.came, account.seen = came, taken
        return found

    def _end(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # it is gone, or there are too many open files: later
            if address := _reset(descriptor, at_least=self._accounts[descriptor].came):
                self._ended.append(address)
            del self._accounts[descriptor]

    def ended(self) -> list[str]:
        """Return whose connections were ended since the last call: addresses and ports."""
        ended, self._ended = self._ended, []
        return ended


def _bytes(descriptor: int) -> tuple[int, int]:
    """Return how many bytes came over a TCP connection, and how many have been read of them.

    Raises OSError where it is none.
    It is libzmq's, which may close it at any time, so it is borrowed for one call each.
    """
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
    try:
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    finally:
        borrowed.detach()
    if len(info) < _BYTES_RECEIVED.size:
        raise OSError(errno.EOPNOTSUPP, "this kernel does not count")
    (came,) = _BYTES_RECEIVED.unpack(info)
    (unread,) = _INT.unpack(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(_INT.size)))
    return int(came), int(came - unread)


def _reset(descriptor: int, *, at_least: int) -> str:
    """End a TCP connection at once, for everyone who holds it, and return whose it was.

    Nothing is done where less than `at_least` bytes came over it: then it is another one, that was
    given the descriptor since. After shutdown(2) Linux goes on receiving; connect(2) to no address
    ends a connection: tcp(7). Raises OSError.
    """
    with socket.socket(fileno=os.dup(descriptor)) as ours:
        if _bytes(ours.fileno())[0] < at_least:
            return ""
        host, port, *_ = ours.getpeername()
        nowhere = struct.pack("@H14x", socket.AF_UNSPEC)
        library = ctypes.CDLL(None, use_errno=True)
        if library.connect(ours.fileno(), nowhere, len(nowhere)) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
