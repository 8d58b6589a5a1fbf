"""ROUTER and DEALER endpoints: whole messages as lists of frames, in and out, never blocking.

A ROUTER knows each connection by an identity that it made up itself, where the peer did not (ours
do not), so a peer that comes back is a new peer. Nothing is queued for a connection that is not
there: what cannot be sent is the machines' affair, who say it again.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgpack
import zmq
from zmq.utils.monitor import recv_monitor_message

from manychar.network.authenticator import Authenticator
from manychar.network.connection_limit import is_crowded, limit
from manychar.network.endpoints import check_endpoint, is_served, is_six, search_of
from manychar.network.keys import ClientKey
from manychar.network.name_resolution import TRY_FOR, Search
from manychar.processes.errors import REFUSED_FOR_SAFETY, UserError
from manychar.protocol.codec import HEADER_BYTES, MAX_FRAMES
from manychar.protocol.messages import Dimensions, Frame, Owner, Peer

HIGH_WATER_MARK = 1000
CURVE_BYTES = 64  # more than encryption adds to a frame
QUEUED_BYTES = 64 * 2**20
OLDEST_LIBZMQ = (4, 3, 3)
OLDEST_MSGPACK = (1, 2, 1)
LINGER_MS = 2000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 500, 1500
KEEPALIVE = {  # seconds, but for the last one: milliseconds until what was sent has to be there
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 20_000,
}
HANDSHAKE_MS = 5000
RECONNECT_MS, RECONNECT_MAX_MS = 50, 500
SHARED_FROM_BYTES = 65_536
KNOCK_AGAIN_AFTER = 1.0
REFUSED_KEY = "it does not let this key in, or has another key itself, or none"
WANTS_KEY = "it wants a key: --key FILE"
_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_EVENTS_AT = "inproc://events"
FAILURES_A_READ = 1000


class Unreachable(Exception):  # noqa: N818
    """There is no connection to this peer any more."""


class Received(NamedTuple):
    """A message, its sender, and whose key it came with; `revoked` if that is not good any more."""

    peer: Peer
    frames: list[Frame]
    owner: Owner | None
    revoked: bool


class Router:
    """The server's socket."""

    def __init__(
        self, endpoint: str, dimensions: Dimensions | None, keys: Path | None = None
    ) -> None:
        """Listen; `dimensions` bound what is received, `keys` say who may come.

        Raises UserError where that cannot be.
        """
        check_libraries()
        check_endpoint(endpoint)
        if is_served(endpoint):  # libzmq would take the file over
            raise _cannot_bind(endpoint, "another program uses it")
        self._context = zmq.Context()
        self.socket = _socket(self._context, zmq.ROUTER, endpoint)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # libzmq ends the process where its timer of heartbeats finds a peer gone whose messages are
        # unread: the server has none, and TCP's own say whose machine is gone.
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, 0)
        for option, value in KEEPALIVE.items():
            self.socket.setsockopt(option, value)
        largest = HEADER_BYTES if dimensions is None else _largest_frame(dimensions)
        self.socket.setsockopt(zmq.MAXMSGSIZE, largest + CURVE_BYTES)
        self.socket.setsockopt(zmq.SNDHWM, messages_queued(dimensions))
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self.door: Authenticator | None = None
        self.socket.monitor(_EVENTS_AT, _FAILED)
        self._events = self._context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.RCVHWM, 0)  # libzmq's thread waits where an event has no room
        self._events.connect(_EVENTS_AT)
        try:
            if keys is not None:
                self.door = Authenticator(self._context, keys)
                self.door.secure(self.socket)
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._give_back()
            why = "another program uses it" if error.errno == zmq.EADDRINUSE else str(error).lower()
            raise _cannot_bind(endpoint, why) from None
        except UserError:
            self._give_back()
            raise
        self._broadcast: tuple[Frame, zmq.Frame] | None = None
        self._shut, self._crowd_complaint = False, ""
        self.endpoint: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _stop_events(self) -> None:
        self.socket.disable_monitor()
        self._events.close(0)

    def _give_back(self) -> None:
        self._stop_events()
        self.socket.close(0)
        if self.door is not None:
            self.door.socket.close(0)
        self._context.term()

    def receive(self) -> Received | None:
        """Return the next message, or None if there is none."""
        try:
            peer = self.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        frames = self._rest_of_message(peer)
        owner = None if self.door is None else self.door.owner_of(str(peer.get("User-Id")))
        revoked = self.door is not None and owner is None
        return Received(peer.bytes, frames, owner, revoked)

    def _rest_of_message(self, frame: zmq.Frame) -> list[Frame]:
        """Return the frames after this one; of more than a message can have, one too many."""
        frames: list[Frame] = []
        while frame.more:
            frame = self.socket.recv(copy=False)
            if len(frames) <= MAX_FRAMES:
                frames.append(frame.buffer)
        return frames

    def failed_handshakes(self) -> int:
        """Return how many failed since the last call: no key, another server's, or no ZMTP.

        At most FAILURES_A_READ, so that a storm of them holds nobody up; the rest comes next time.
        """
        for failed in range(FAILURES_A_READ):
            try:
                self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return failed
        return FAILURES_A_READ

    def send(self, peer: Peer, frames: Sequence[Frame]) -> bool:
        """Send to a peer; False if its queue is full. The frames are not to be written to again.

        Raises Unreachable where its connection is gone.
        """
        parts = [self._shared(f) if len(f) >= SHARED_FROM_BYTES else f for f in frames]
        try:
            self.socket.send_multipart([peer, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise Unreachable from None
            raise
        return True

    def _shared(self, frame: Frame) -> zmq.Frame:
        """Return libzmq's own copy of a frame; of a tensor one for all who are sent it in a row."""
        if not isinstance(frame, memoryview):
            return zmq.Frame(frame, copy=True)
        if self._broadcast is None or self._broadcast[0] is not frame:
            self._broadcast = frame, zmq.Frame(frame, copy=True)
        return self._broadcast[1]

    def mind_the_crowd(self) -> str:
        """Take no more connections while too many files are open; return a line to say, or none."""
        crowded = is_crowded(already=self._shut)
        if crowded == self._shut:
            return ""
        try:
            (self.socket.unbind if crowded else self.socket.bind)(self.endpoint)
        except zmq.ZMQError as error:
            said, self._crowd_complaint = self._crowd_complaint, str(error).lower()
            same = said == self._crowd_complaint
            return "" if same else f"{self.endpoint}: {self._crowd_complaint}: trying again"
        self._shut, self._crowd_complaint = crowded, ""
        if crowded:
            return f"too many connections for {limit():,} open files: nobody else is let in"
        return "there is room for connections again"

    def close(self) -> None:
        """Send what is queued, for LINGER_MS at most, and close."""
        self._stop_events()
        self.socket.close(LINGER_MS)
        if self.door is not None:
            self.door.socket.close()
        self._context.term()
        if self.endpoint.startswith("ipc://"):
            Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


def check_free(endpoint: str, keys: Path | None) -> None:
    """Raise UserError where a server could not listen at this endpoint, with these keys, now."""
    Router(endpoint, None, keys).close()


def _cannot_bind(endpoint: str, why: str) -> UserError:
    return UserError(f"cannot bind to {endpoint}: {why}; choose another --bind")


class Dealer:
    """A worker's or an observer's socket.

    Nothing is sent while there is no connection, or it would be delivered in a heap to whoever
    comes. ZMQ_IMMEDIATE would do that, but it also drops messages that have arrived and not been
    read yet when the connection ends: a server's last words. So the socket's events are followed.
    """

    def __init__(self, endpoint: str, key: ClientKey | None = None) -> None:
        check_libraries()
        check_endpoint(endpoint)
        self._context = zmq.Context()
        self.socket = _socket(self._context, zmq.DEALER, endpoint)
        if key is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, key.server.encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, key.public.encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, key.secret.encode())
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        followed = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _REFUSALS
        followed |= zmq.EVENT_CONNECT_RETRIED
        self._refusal = ""
        self._refusal_said = ""
        self._search = search_of(endpoint)
        self._endpoint = "" if self._search else endpoint
        self._try_next_at = 0.0
        self._knock_at = math.inf
        self._has_key = key is not None
        self._events = self.socket.get_monitor_socket(followed)
        self._connected = False
        try:
            if self._endpoint:
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

    def refusal(self) -> str:
        """Return, once, why there is no connection, where the server refused one."""
        if self._refusal in ("", self._refusal_said):
            return ""
        self._refusal_said = self._refusal
        return self._refusal

    def _follow_events(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                event = recv_monitor_message(self._events, zmq.NOBLOCK)["event"]
                self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                if event == zmq.EVENT_CONNECT_RETRIED and self._search and self._search.several:
                    self._try_next_at = 0.0
                if event & _REFUSALS:
                    self._refusal = REFUSED_KEY if self._has_key else WANTS_KEY
                    self._knock_at = time.monotonic() + KNOCK_AGAIN_AFTER
        if self._connected or self.socket.poll(0):
            return  # to disconnect would drop what is unread: a server's last words
        if time.monotonic() >= self._knock_at:  # libzmq itself gives up where it was refused
            self._knock_at = math.inf
            with contextlib.suppress(zmq.ZMQError):
                self.socket.disconnect(self._endpoint)
            self.socket.connect(self._endpoint)
        if self._search is not None:
            self._try_elsewhere(self._search, time.monotonic())

    def _try_elsewhere(self, search: Search, now: float) -> None:
        """Connect to the next of a name's addresses, if the one before had its time."""
        if now < self._try_next_at or (endpoint := search.next()) is None:
            return
        self._try_next_at = now + TRY_FOR
        if endpoint == self._endpoint:
            return  # libzmq is at it
        if self._endpoint:
            with contextlib.suppress(zmq.ZMQError):
                self.socket.disconnect(self._endpoint)
        self._endpoint = endpoint
        self.socket.setsockopt(zmq.IPV6, is_six(endpoint))
        self.socket.connect(endpoint)

    def news(self) -> list[str]:
        """Return what there is to say of the search for a server's name."""
        return self._search.news() if self._search is not None else []

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
    made.setsockopt(zmq.IPV6, is_six(endpoint))
    made.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    made.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    made.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    return made


def messages_queued(dimensions: Dimensions | None) -> int:
    """Return how many messages may wait for one peer: QUEUED_BYTES, or what all shards need.

    A peer that does not read costs no more; what finds no place is dropped, and said again later.
    """
    if dimensions is None:
        return HIGH_WATER_MARK
    needed = 16 + 4 * dimensions.shards * (dimensions.delay + 1)
    by_size = min(HIGH_WATER_MARK, QUEUED_BYTES // dimensions.parameters_bytes)
    return max(needed, by_size)


def check_libraries() -> None:
    """Raise UserError where libzmq or msgpack is too old to be safe."""
    for name, found, oldest in (
        ("libzmq", zmq.zmq_version_info(), OLDEST_LIBZMQ),
        ("msgpack", msgpack.version, OLDEST_MSGPACK),
    ):
        if tuple(found) < oldest:
            known, wanted = (".".join(map(str, version)) for version in (found, oldest))
            raise UserError(
                f"{name} {known} has known faults: install {wanted} or newer",
                code=REFUSED_FOR_SAFETY,
            )


def _largest_frame(dimensions: Dimensions) -> int:
    """Return the length of the longest frame that a peer has reason to send."""
    units = 64 * dimensions.shards * (dimensions.delay + 1)
    return max(HEADER_BYTES, dimensions.parameters_bytes, dimensions.hidden_bytes, units)
