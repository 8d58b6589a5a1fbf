"""What Linux counts of a TCP connection that libzmq holds, and how it is ended from outside.

The descriptors are libzmq's, which may close them at any time: an answer may be of another
connection by then. The calls neither block nor give up the interpreter's lock, for they are many
and short.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
import termios
from typing import NamedTuple

COUNTS = sys.platform == "linux"  # nobody else says how many bytes came
_BYTES_RECEIVED = struct.Struct("@128xQ")  # tcpi_bytes_received in struct tcp_info
_TRIES = 4
_LIBRARY = ctypes.PyDLL(None, use_errno=True)


class Counts(NamedTuple):
    """Bytes of a connection: how many came, and how many of them have been read.

    Where more came between the kernel's answers, again and again, they are not `exact`: then at
    least so many were read.
    """

    came: int
    taken: int
    exact: bool


def counts(descriptor: int) -> Counts:
    """Return the counts of a connection. Raises OSError where there is none, or it is not TCP."""
    before = _came(descriptor)
    for _ in range(_TRIES):
        unread, after = _unread(descriptor), _came(descriptor)
        if before == after:
            return Counts(after, after - unread, exact=True)
        lowest = before - unread
        before = after
    return Counts(after, max(0, lowest), exact=False)


def _came(descriptor: int) -> int:
    info, size = ctypes.create_string_buffer(_BYTES_RECEIVED.size), ctypes.c_uint32()
    size.value = len(info)
    where = (descriptor, socket.IPPROTO_TCP, socket.TCP_INFO)
    if _LIBRARY.getsockopt(*where, info, ctypes.byref(size)) != 0:
        raise _fault()
    if size.value < len(info):
        raise OSError(errno.EOPNOTSUPP, "this kernel does not count")
    return int(_BYTES_RECEIVED.unpack(info)[0])


def _unread(descriptor: int) -> int:
    unread = ctypes.c_int()
    if _LIBRARY.ioctl(descriptor, ctypes.c_ulong(termios.FIONREAD), ctypes.byref(unread)) != 0:
        raise _fault()
    return unread.value


def _fault() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Ender:
    """Ends connections. It has a descriptor to spare, for files may have run out."""

    def __init__(self) -> None:
        self._nothing = os.open(os.devnull, os.O_RDONLY)
        self._spare = os.dup(self._nothing)

    def close(self) -> None:
        """End no more of them."""
        os.close(self._spare)
        os.close(self._nothing)

    def reset(self, descriptor: int, *, at_least: int) -> str:
        """End a TCP connection at once, for everyone who holds it, and return whose it was.

        Nothing is done where less than `at_least` bytes came over it: then it is another one, that
        was given the descriptor since. After shutdown(2) Linux goes on receiving; connect(2) to no
        address ends a connection: tcp(7). Raises OSError.
        """
        os.dup2(descriptor, self._spare, inheritable=False)
        try:
            return _reset(self._spare) if counts(self._spare).came >= at_least else ""
        finally:
            os.dup2(self._nothing, self._spare, inheritable=False)


def _reset(descriptor: int) -> str:
    connection = socket.socket(fileno=descriptor)
    try:
        host, port, *_ = connection.getpeername()
    finally:
        connection.detach()
    nowhere = struct.pack("@H14x", socket.AF_UNSPEC)
    if _LIBRARY.connect(descriptor, nowhere, len(nowhere)) != 0:
        raise _fault()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
