"""The server's socket: whole messages as lists of frames, in and out, never blocking.

A ROUTER numbers each connection itself, so a client that connects again is a new peer. Nothing is
queued for a connection that is gone; what cannot be sent, the protocol sends again later.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import zmq

from manychar.network import sockets
from manychar.network.authenticator import Authenticator
from manychar.network.connection_limit import raise_limit, why_no_more
from manychar.network.endpoints import CANNOT_BIND, TAKEN, check_endpoint, ipc_file
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.protocol.codec import HEADER_BYTES, MAX_FRAMES
from manychar.protocol.dimensions import Dimensions, most_units
from manychar.protocol.messages import Frame, Owner, Peer, Unit
from manychar.protocol.unit_payload import largest_payload

CURVE_BYTES = 64  # more than encryption adds to a frame
QUEUED_BYTES = 64 * 2**20
OPTIONS = {zmq.ROUTER_MANDATORY: 1, zmq.HANDSHAKE_IVL: 5000}
SHARED_FROM_BYTES = 65_536
_NOBLOCK, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
FAILURES_A_READ = 1000
_NOT_HERE = "this machine has no such address, name or interface"
_WHY = {zmq.EADDRINUSE: TAKEN, zmq.EADDRNOTAVAIL: _NOT_HERE, errno.ENODEV: _NOT_HERE}


class Unreachable(Exception):  # noqa: N818
    """There is no connection to this peer any more."""


class Received(NamedTuple):
    """A message, its sender, and whose key it came with; `revoked` if that is invalid by now."""

    peer: Peer
    frames: list[Frame]
    owner: Owner | None
    revoked: bool


class Router:
    """The server's socket."""

    def __init__(self, endpoint: str, size: Dimensions | None, keys: Path | None = None) -> None:
        """Listen; `size` bounds what is received, `keys` has the clients that may connect."""
        raise_limit()
        self.endpoint, self.size = "", size
        self._is_full, self._logged = False, ""
        self._file: os.stat_result | None = None
        self.authenticator: Authenticator | None = None
        self._shared: tuple[Frame, zmq.Frame] | None = None
        self._context = zmq.Context()
        self.socket = sockets.new_socket(self._context, zmq.ROUTER, endpoint)
        self._failures = sockets.monitor_of(self._context, self.socket, sockets.HANDSHAKE_FAILED)
        for option, value in OPTIONS.items():
            self.socket.setsockopt(option, value)
        self.socket.setsockopt(zmq.MAXMSGSIZE, _largest_frame(size) + CURVE_BYTES)
        self.socket.setsockopt(zmq.SNDHWM, messages_queued(size))
        try:
            if keys is not None:
                self.authenticator = Authenticator(self._context, keys)
                self.authenticator.secure(self.socket)
            self.listen(endpoint)
        except (zmq.ZMQError, UserError):
            self.close(0)
            raise

    def listen(self, endpoint: str) -> None:
        """Bind. Raises UserError where that cannot be, or is taken."""
        check_endpoint(endpoint)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            number = error.errno or 0
            why = _WHY.get(number) or zmq.strerror(number).lower()
            raise UserError(CANNOT_BIND.format(endpoint, why)) from None
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._file = ipc_file(self.endpoint)

    def limit_connections(self) -> None:
        """Stop listening while too many files are open, and listen again when there is room.

        libzmq closes a listener's connections with it.
        """
        full = why_no_more(is_full=self._is_full)
        if bool(full) == self._is_full:
            return
        try:
            (self.socket.unbind if full else self.listen)(self.endpoint)
        except (zmq.ZMQError, UserError) as error:
            self._log(f"{error}: trying again")
            return
        self._is_full = bool(full)
        if full:
            self._log(
                f"{full}: all connections are closed; clients connect again when there is room"
            )
        else:
            self._log("there is room for connections again: they are accepted")

    def _log(self, line: str) -> None:
        if line != self._logged:
            logger.warning(line)
        self._logged = line

    def receive(self) -> Received | None:
        if not sockets.is_readable(self.socket):
            return None
        peer, owner, revoked = self.socket.recv(_NOBLOCK), None, False
        frame = self.socket.recv(copy=False)
        if self.authenticator is not None:
            owner = self.authenticator.owner_of(str(frame.get("User-Id")))
            revoked = owner is None
        frames: list[Frame] = [frame.buffer]
        while frame.more:
            frame = self.socket.recv(copy=False)
            if len(frames) <= MAX_FRAMES:  # of more than a message can have, one too many
                frames.append(frame.buffer)
        return Received(peer, frames, owner, revoked)

    def send(self, peer: Peer, frames: Sequence[Frame]) -> bool:
        """Send to a peer; False if its queue is full, Unreachable if its connection is gone."""
        *parts, last = [self._copied(f) if len(f) >= SHARED_FROM_BYTES else f for f in frames]
        try:
            self.socket.send(peer, _MORE)
            for part in parts:
                self.socket.send(part, _MORE, copy=not isinstance(part, zmq.Frame))
            self.socket.send(last, _NOBLOCK, copy=not isinstance(last, zmq.Frame))
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise Unreachable from None
            raise
        return True

    def _copied(self, frame: Frame) -> zmq.Frame:
        """Return libzmq's own copy of a frame: one copy of a tensor that is sent to many in a row.

        Not pyzmq's zero-copy: it goes through a thread of its own, and its hops through the
        interpreter's lock cost more than copying 90 kB.
        """
        if not isinstance(frame, memoryview):
            return zmq.Frame(frame, copy=True)
        if self._shared is None or self._shared[0] is not frame:
            self._shared = frame, zmq.Frame(frame, copy=True)
        return self._shared[1]

    def failed_handshakes(self) -> int:
        """Return how many failed since the last call: no key, another server's, or not finished.

        libzmq does not tell of other protocols, such as HTTP, where the socket has keys.

        At most FAILURES_A_READ, so that a storm does not hold the caller; the next call counts on.
        """
        for failed in range(FAILURES_A_READ):
            try:
                self._failures.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return failed
        return FAILURES_A_READ

    def close(self, linger: int = sockets.LINGER_MS) -> None:
        """Send what is queued, for `linger` milliseconds at most, and close."""
        self.socket.disable_monitor()
        self._failures.close(0)
        self.socket.close(linger)
        if self.authenticator is not None:
            self.authenticator.socket.close(0)
        self._context.term()
        now = ipc_file(self.endpoint)
        if self._file and now and os.path.samestat(self._file, now):  # not what came in its place
            Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


def messages_queued(dimensions: Dimensions | None) -> int:
    """Return how many messages may wait for one peer: QUEUED_BYTES, or what all shards need."""
    if dimensions is None:
        return sockets.HIGH_WATER_MARK
    by_size = QUEUED_BYTES // dimensions.parameters_bytes
    return max(16 + 4 * dimensions.shards, min(sockets.HIGH_WATER_MARK, by_size))


def _largest_frame(dimensions: Dimensions | None) -> int:
    """Return the length of the longest frame that a peer has reason to send."""
    if dimensions is None:
        return HEADER_BYTES
    units = 8 * len(Unit._fields) * most_units(dimensions)
    return max(HEADER_BYTES, units, largest_payload(dimensions))
