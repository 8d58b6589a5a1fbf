"""Accepts or refuses each handshake: libzmq asks by ZAP (ZeroMQ RFC 27) which clients may connect.

Every message of an accepted connection carries its public key as `User-Id`, so that a key that is
revoked later is noticed at its next message. While the list of clients cannot be read, no new
connection is accepted, and the present ones stay.
"""

import time
from pathlib import Path

import zmq
from zmq.utils import z85

from manychar.network.keys import CLIENTS_NAME, read_clients, read_server_key
from manychar.network.sockets import Context, Socket
from manychar.processes.errors import UserError, user_errors
from manychar.processes.log import logger
from manychar.protocol.messages import Owner

ENDPOINT = "inproc://zeromq.zap.01"
DOMAIN = b"manychar"
READ_LIST_EVERY = 0.05
ANSWERS_A_TURN = 100  # some 5 ms
REFUSED = [b"400", b"no accepted key", b""]
UNREADABLE = 500  # while the list cannot be read: the client is to try again


class Authenticator:
    """The server's side of CURVE: `secure` a socket before it is bound, `answer` in the loop."""

    def __init__(self, context: Context, keys: Path) -> None:
        """Read the server's key; UserError where it cannot be read, or others can read it."""
        self._key, self._keys = read_server_key(keys), keys
        self._owners: dict[str, Owner] = {}
        self._current: frozenset[Owner] = frozenset()
        self._version: tuple[int, ...] = ()
        self._read_at = 0.0
        self._is_closed = False
        self._refused: list[str] = []
        read_clients(keys)
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)

    def secure(self, socket: Socket) -> None:
        """Have a socket speak CURVE only, and ask here."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._key.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def answer(self) -> None:
        """Answer ANSWERS_A_TURN handshakes at most: the loop goes on."""
        for _ in range(ANSWERS_A_TURN):
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # Only libzmq reaches the endpoint, and the one socket that asks here has CURVE.
            version, number, _domain, address, _identity, _mechanism, public = request
            key = z85.encode(public)
            self._read_list()
            if self._is_closed:
                answer = [b"%d" % UNREADABLE, *REFUSED[1:]]
            elif key.decode() in self._owners:
                answer = [b"200", b"", key]
            else:
                answer = REFUSED
                self._refused.append(address.decode(errors="replace").removeprefix("::ffff:"))
            self.socket.send_multipart([version, number, *answer, b""])

    def take_refused(self) -> list[str]:
        """Return the clients that were refused since the last call.

        Each by its address, or `localhost:USER:GROUP:PROCESS` of one that comes by ipc.
        """
        refused, self._refused = self._refused, []
        return refused

    def owner_of(self, public: str) -> Owner | None:
        """Return whose key a message came with, if it was valid READ_LIST_EVERY seconds ago."""
        self._read_list(max_age=READ_LIST_EVERY)
        return self._owners.get(public)

    def still_owns(self, owner: Owner) -> bool:
        """Whether a key of this name and role is still valid."""
        self._read_list(max_age=READ_LIST_EVERY)
        return owner in self._current

    def _read_list(self, max_age: float = 0.0) -> None:
        """Read the list again where it has changed; accept no client while it cannot be read."""
        if time.monotonic() < self._read_at + max_age:
            return
        self._read_at = time.monotonic()
        try:
            with user_errors(self._keys / CLIENTS_NAME):
                folder, status = self._keys.stat(), (self._keys / CLIENTS_NAME).stat()
            times = status.st_mtime_ns, status.st_ctime_ns  # the latter of who may read or write it
            version = (status.st_ino, *times, status.st_size, folder.st_mode, folder.st_uid)
            if version == self._version:
                return
            clients = read_clients(self._keys)
        except UserError as error:
            if not self._is_closed:
                logger.warning(f"no new connections are accepted: {error}")
            self._is_closed, self._version = True, ()
            return
        if self._is_closed:
            logger.warning("the list of clients can be read again: connections are accepted")
        self._is_closed, self._version = False, version
        revoked = {client.public for client in clients if client.revoked}
        valid = [client for client in clients if client.public not in revoked]
        self._owners = {client.public: Owner(client.name, client.role) for client in valid}
        self._current = frozenset(self._owners.values())
