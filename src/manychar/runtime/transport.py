"""ROUTER and DEALER endpoints: whole messages as lists of frames, in and out, never blocking.

A ROUTER knows each connection by an identity that it made up itself, so a peer that comes back is
a new peer. Nothing is queued for a connection that is not there: what cannot be sent is the
machines' affair, who say it again.
"""

import contextlib
import ipaddress
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from manychar.protocol.codec import HEADER_BYTES
from manychar.protocol.messages import Dimensions, Frame, Peer
from manychar.runtime.errors import REFUSED_FOR_SAFETY, UserError

HIGH_WATER_MARK = 1000
LINGER_MS = 2000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 500, 1500
RECONNECT_MS, RECONNECT_MAX_MS = 50, 500
IPC_PATH_LENGTH = 107
SHARED_FROM_BYTES = 65_536

_TCP = re.compile(r"tcp://(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:/\[\]]+)):(?P<port>\d+|\*)")


class Unreachable(Exception):  # noqa: N818
    """There is no connection to this peer any more."""


def check_endpoint(endpoint: str) -> None:
    """Raise UserError for what is no address of ours."""
    if endpoint.startswith("ipc://"):
        if not 0 < len(endpoint.removeprefix("ipc://").encode()) <= IPC_PATH_LENGTH:
            raise UserError(f"{endpoint}: an ipc path has 1 to {IPC_PATH_LENGTH} bytes")
        return
    match = _TCP.fullmatch(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > 65_535):
        raise UserError(f"{endpoint}: not an endpoint: write it as tcp://HOST:PORT or ipc://PATH")


def is_local(endpoint: str) -> bool:
    """Whether only processes on this machine can reach an endpoint."""
    match = _TCP.fullmatch(endpoint)
    if match is None:
        return endpoint.startswith("ipc://")
    host = match["six"] or match["host"]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_safe(endpoint: str, *, insecure: bool) -> None:
    """Refuse to listen where strangers can reach it, unless told to."""
    if not is_local(endpoint) and not insecure:
        raise UserError(
            f"{endpoint} can be reached from other machines, and nothing here checks who comes:"
            " bind to tcp://127.0.0.1:PORT, or add --insecure if you trust the network",
            code=REFUSED_FOR_SAFETY,
        )


class Router:
    """The server's socket."""

    def __init__(self, endpoint: str, dimensions: Dimensions | None) -> None:
        """Listen; `dimensions` bound what is received. Raises UserError where that cannot be."""
        check_endpoint(endpoint)
        if _is_served(endpoint):  # libzmq would take the file over
            raise _cannot_bind(endpoint, "another program uses it")
        self._context = zmq.Context()
        self.socket = _socket(self._context, zmq.ROUTER, endpoint)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        largest = HEADER_BYTES if dimensions is None else _largest_frame(dimensions)
        self.socket.setsockopt(zmq.MAXMSGSIZE, largest)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.socket.close(0)
            self._context.term()
            why = "another program uses it" if error.errno == zmq.EADDRINUSE else str(error).lower()
            raise _cannot_bind(endpoint, why) from None
        self._broadcast: tuple[Frame, zmq.Frame] | None = None
        self.endpoint: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self) -> tuple[Peer, list[Frame]] | None:
        """Return the next message and its sender, or None if there is none."""
        try:
            peer, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return peer.bytes, [frame.buffer for frame in frames]

    def send(self, peer: Peer, frames: Sequence[Frame]) -> bool:
        """Send to a peer; False if its queue is full. The frames are not to be written to again.

        Raises Unreachable where its connection is gone.
        """
        last = len(frames) - 1
        try:
            self.socket.send(peer, zmq.NOBLOCK | zmq.SNDMORE)
            for place, frame in enumerate(frames):
                flags = zmq.NOBLOCK if place == last else zmq.NOBLOCK | zmq.SNDMORE
                if len(frame) < SHARED_FROM_BYTES:
                    self.socket.send(frame, flags)
                else:
                    self.socket.send(self._shared(frame), flags, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise Unreachable from None
            raise
        return True

    def _shared(self, frame: Frame) -> zmq.Frame:
        """Return libzmq's own copy of a frame: one for all peers that are sent it in a row."""
        if self._broadcast is None or self._broadcast[0] is not frame:
            self._broadcast = frame, zmq.Frame(frame, copy=True)
        return self._broadcast[1]

    def close(self) -> None:
        """Send what is queued, for LINGER_MS at most, and close."""
        self.socket.close(LINGER_MS)
        self._context.term()
        if self.endpoint.startswith("ipc://"):
            Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


def check_free(endpoint: str) -> None:
    """Raise UserError where a server could not listen at this endpoint now."""
    Router(endpoint, None).close()


def _cannot_bind(endpoint: str, why: str) -> UserError:
    return UserError(f"cannot bind to {endpoint}: {why}; choose another --bind")


def _is_served(endpoint: str) -> bool:
    """Whether somebody listens on an ipc endpoint's file."""
    path = endpoint.removeprefix("ipc://")
    if path == endpoint or not Path(path).exists():
        return False
    with socket.socket(socket.AF_UNIX) as visitor:
        return visitor.connect_ex(path) == 0


class Dealer:
    """A worker's or an observer's socket.

    Nothing is sent while there is no connection, or it would be delivered in a heap to whoever
    comes. ZMQ_IMMEDIATE would do that, but it also drops messages that have arrived and not been
    read yet when the connection ends: a server's last words. So the socket's events are followed.
    """

    def __init__(self, endpoint: str) -> None:
        check_endpoint(endpoint)
        self._context = zmq.Context()
        self.socket = _socket(self._context, zmq.DEALER, endpoint)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        followed = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._events = self.socket.get_monitor_socket(followed)
        self._connected = False
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(f"cannot connect to {endpoint}: {str(error).lower()}") from None

    def receive(self) -> list[Frame] | None:
        """Return the next message, or None if there is none."""
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return [frame.buffer for frame in frames]

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send; False if there is no connection, or its queue is full."""
        self._follow_events()
        if not self._connected:
            return False
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _follow_events(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                event = recv_monitor_message(self._events, zmq.NOBLOCK)["event"]
                self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def close(self) -> None:
        """Send what is queued, for LINGER_MS at most, and close."""
        self.socket.disable_monitor()
        self._events.close(0)
        self.socket.close(LINGER_MS if self._connected else 0)
        self._context.term()


def _socket(
    context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str
) -> "zmq.Socket[bytes]":
    made = context.socket(kind)
    made.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    made.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    made.setsockopt(zmq.LINGER, LINGER_MS)
    made.setsockopt(zmq.IPV6, int(endpoint.startswith("tcp://[")))
    made.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    made.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    made.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    return made


def _largest_frame(dimensions: Dimensions) -> int:
    """Return the length of the longest frame that a peer has reason to send."""
    units = 64 * dimensions.shards * (dimensions.delay + 1)
    return max(HEADER_BYTES, dimensions.parameters_bytes, dimensions.hidden_bytes, units)
