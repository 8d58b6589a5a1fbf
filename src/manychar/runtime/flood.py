"""Ends connections that bring a message without an end.

libzmq hands a message over when its last frame is there, and has no limit to their number: a frame
of no bytes takes 2 on the wire and 64 in memory. So the bytes that came over each connection, which
the kernel counts (TCP_INFO of Linux), are held against those that were handed over. A connection
with more between the two than an honest peer can have is ended, and libzmq frees what it had of it.
"""

import contextlib
import ctypes
import dataclasses
import os
import socket
import struct
import sys
import time

LOOK_EVERY = 0.025
SHARE_OF_TIME = 0.05  # that looking may take where there are very many connections
_BYTES_RECEIVED = struct.Struct("@128xQ")  # tcpi_bytes_received in struct tcp_info


@dataclasses.dataclass
class _Account:
    """One connection's bytes: `settled` had come when all was read, `read` is what was since."""

    settled: int = 0
    read: int = 0


class Floods:
    """Keeps the accounts of one socket's connections, by file descriptor.

    `allowed` is how many bytes of one connection may be under way; of all together twice as many.
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._accounts: dict[int, _Account] = {}
        self._ended: list[str] = []
        self.look_at = 0.0

    def accepted(self, descriptor: int) -> None:
        """Open the account of a new connection."""
        if sys.platform == "linux":
            self._accounts[descriptor] = _Account()

    def read(self, descriptor: int, size: int) -> None:
        """Note that a message of `size` bytes was handed over."""
        if (account := self._accounts.get(descriptor)) is not None:
            account.read += size

    def look(self, *, all_read: bool) -> None:
        """End who has too much under way; `all_read` is that no whole message waits to be read."""
        began = time.monotonic()
        under_way = self._under_way(all_read=all_read)
        total = sum(under_way.values())
        for descriptor, size in sorted(under_way.items(), key=lambda item: -item[1]):
            if size <= self._allowed and total <= 2 * self._allowed:
                break
            total -= size
            self.end(descriptor)
        ended = time.monotonic()
        self.look_at = ended + max(LOOK_EVERY, (ended - began) / SHARE_OF_TIME)

    def _under_way(self, *, all_read: bool) -> dict[int, int]:
        """Return the bytes of each connection that came and were not handed over."""
        found = {}
        for descriptor, account in list(self._accounts.items()):
            try:
                came = _bytes_received(descriptor)
            except OSError:
                del self._accounts[descriptor]  # it is closed, or no TCP connection
                continue
            if all_read and account.read:
                account.settled, account.read = came, 0
            found[descriptor] = came - account.settled - account.read
        return found

    def end(self, descriptor: int) -> None:
        """End a connection, whatever becomes of what it has brought."""
        self._accounts.pop(descriptor, None)
        with contextlib.suppress(OSError), _connection(descriptor) as connection:
            host, port, *_ = connection.getpeername()
            _reset(connection)
            self._ended.append(f"{host}:{port}")

    def ended(self) -> list[str]:
        """Return whose connections were ended since the last call: addresses and ports."""
        ended, self._ended = self._ended, []
        return ended


def _reset(connection: socket.socket) -> None:
    """End a TCP connection at once, for everyone who holds it. Raises OSError.

    After shutdown(2) Linux goes on receiving; to connect(2) to no address ends it: tcp(7).
    """
    nowhere = struct.pack("@H14x", socket.AF_UNSPEC)
    library = ctypes.CDLL(None, use_errno=True)
    if library.connect(connection.fileno(), nowhere, len(nowhere)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _connection(descriptor: int) -> socket.socket:
    """Return libzmq's connection under a descriptor of our own: it may close its at any time."""
    ours = os.dup(descriptor)
    try:
        return socket.socket(fileno=ours)
    except OSError:
        os.close(ours)
        raise


def _bytes_received(descriptor: int) -> int:
    """Return how many bytes have come over a TCP connection. Raises OSError where it is none."""
    with _connection(descriptor) as connection:
        connection.getpeername()
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    if len(info) < _BYTES_RECEIVED.size:
        raise OSError("this kernel does not count")
    (received,) = _BYTES_RECEIVED.unpack(info)
    return int(received)
