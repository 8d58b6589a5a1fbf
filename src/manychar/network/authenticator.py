"""Who may connect: libzmq asks for each handshake (ZAP, ZeroMQ RFC 27), and this answers.

A connection that was let in carries its public key as the `User-Id` of every message, so that a key
that is revoked later is noticed at its next message. While the list of clients cannot be read,
nobody is let in, and who is in already may stay.
"""

import contextlib
import time
from pathlib import Path

import zmq

from manychar.network.keys import CLIENTS_NAME, read_clients, read_server_key
from manychar.processes.errors import UserError
from manychar.protocol.messages import Owner

ENDPOINT = "inproc://zeromq.zap.01"
DOMAIN = b"manychar"
LOOK_EVERY = 0.05
_VERSION, _MECHANISM = b"1.0", b"CURVE"
_REQUEST_FRAMES = 7  # version, request, domain, address, identity, mechanism, the public key


class Authenticator:
    """The server's side of CURVE: `secure` a socket before it is bound, `answer` when asked."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", keys: Path) -> None:
        """Take the server's key; UserError where it cannot be read, or others can read it."""
        self._key = read_server_key(keys)
        self._path = keys
        self._seen: tuple[int, ...] = ()
        self._look_at = 0.0
        self._owners: dict[str, Owner] = {}
        self._current: frozenset[Owner] = frozenset()
        self._closed = False
        self._complaint = ""
        read_clients(keys)
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)

    def secure(self, socket: "zmq.Socket[bytes]") -> None:
        """Have a socket speak CURVE only, and ask here."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._key.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def answer(self) -> int:
        """Answer every handshake that waits for it; return how many were refused."""
        refused = 0
        with contextlib.suppress(zmq.Again):
            while True:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
                owner = self._owner_asking(request)
                refused += owner is None
                status = [b"200", b""] if owner else [b"400", b"no key that may come"]
                user = zmq_key(request[6]) if owner else ""
                number = request[1] if len(request) > 1 else b""
                self.socket.send_multipart([_VERSION, number, *status, user.encode(), b""])
        return refused

    def _owner_asking(self, request: list[bytes]) -> Owner | None:
        if len(request) != _REQUEST_FRAMES or request[0] != _VERSION:
            return None
        if request[2] != DOMAIN or request[5] != _MECHANISM or len(request[6]) != 32:
            return None
        self._look()
        return None if self._closed else self._owners.get(zmq_key(request[6]))

    def owner_of(self, public: str) -> Owner | None:
        """Return whose key a message came with, if it may come as things stood a moment ago."""
        self._look_if_due()
        return self._owners.get(public)

    def _look_if_due(self) -> None:
        if time.monotonic() >= self._look_at:
            self._look()

    def still_owns(self, owner: Owner) -> bool:
        """Whether a key of this name and role may still come."""
        self._look_if_due()
        return owner in self._current

    def complaint(self) -> str:
        """Return, once, why nobody is let in, or that the list can be read again."""
        said, self._complaint = self._complaint, ""
        return said

    def _look(self) -> None:
        """Read the list again where it has changed; close the door where it cannot be read."""
        self._look_at = time.monotonic() + LOOK_EVERY
        try:
            folder, status = self._path.stat(), (self._path / CLIENTS_NAME).stat()
            times = status.st_mtime_ns, status.st_ctime_ns  # the latter of who may read or write it
            seen = (status.st_ino, *times, status.st_size, folder.st_mode, folder.st_uid)
            if seen == self._seen:
                return
            clients = read_clients(self._path)
        except (OSError, UserError) as error:
            if not self._closed:
                self._complaint = f"nobody is let in: {error}"
            self._closed, self._seen = True, ()
            return
        if self._closed:
            self._complaint = "the list of clients can be read again: they are let in"
        self._closed, self._seen = False, seen
        revoked = {client.public for client in clients if client.revoked}
        self._owners = {
            client.public: Owner(client.name, client.role)
            for client in clients
            if client.public not in revoked
        }
        self._current = frozenset(self._owners.values())


def zmq_key(raw: bytes) -> str:
    """Return 32 bytes as Z85."""
    from zmq.utils import z85  # noqa: PLC0415 - only where there are keys

    return z85.encode(raw).decode()
