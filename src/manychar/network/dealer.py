"""A client's socket: whole messages as lists of frames, in and out, never blocking."""

import contextlib
import math
import time
from collections.abc import Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from manychar.network.authenticator import UNREADABLE
from manychar.network.endpoints import check_endpoint, host_name_of, zmq_ipv6
from manychar.network.keys import ClientKey
from manychar.network.name_resolution import TRY_FOR, NameResolver
from manychar.network.sockets import LINGER_MS, is_readable, monitor_of, new_socket
from manychar.processes.errors import RUN_FAILED, UserError
from manychar.protocol.messages import Frame

RECONNECT_MS, RECONNECT_MAX_MS = 50, 500
CONNECT_AGAIN_AFTER, AGAIN_WITHIN = 1.0, 3.0
ATTEMPTS = 5
WITHOUT_KEY = "it asks for a key: --key FILE"
WITH_KEY = "it has no keys: leave out --key, $MANYCHAR_KEY and $MANYCHAR_KEY_FILE"
UNKNOWN_KEY = (
    "it does not know this key, or has revoked it; manychar keys add at the server makes another"
)
ANOTHER_KEY = "wrong server key, or not a manychar server"
NO_KEY = f"{WITHOUT_KEY}, or is not a manychar server"
_CONNECTED, _RETRIED = zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_CONNECT_RETRIED
_PROTOCOL, _AUTH = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_AUTH
_DISCONNECTED = zmq.EVENT_DISCONNECTED
_EVENTS = _CONNECTED | _RETRIED | _PROTOCOL | _AUTH | _DISCONNECTED


# Many attributes: what libzmq's monitor told of one connection.
class Dealer:
    """The socket of a worker or an observer.

    Nothing is sent while there is no connection: it would wait, and be delivered all at once to
    the next server. ZMQ_IMMEDIATE would do that too, but when the connection ends it drops
    the server's last messages where they are not read yet. So the socket's events are read.
    """

    def __init__(self, endpoint: str, key: ClientKey | None = None) -> None:
        check_endpoint(endpoint, to_connect=True)
        self._context = zmq.Context()
        self.socket = new_socket(self._context, zmq.DEALER, endpoint)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        if key is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, key.server.encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, key.public.encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, key.secret.encode())
        # Often the server closes first, and no reason comes; one that stops meanwhile does so once.
        self._reasons = (WITHOUT_KEY, NO_KEY) if key is None else (WITH_KEY, ANOTHER_KEY)
        self._disconnects, self._disconnected_at, self._was_accepted = 0, -math.inf, False
        self._events = monitor_of(self._context, self.socket, _EVENTS)
        self._is_connected = False
        self.retries = 0  # in a row; the first one follows a connection's end, too
        self._connect_again_at, self._try_next_at = math.inf, -math.inf
        self._endpoint = ""
        self._names = NameResolver(*name) if (name := host_name_of(endpoint)) else None
        try:
            if self._names is None:
                self._connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            why = zmq.strerror(error.errno or 0).lower()
            raise UserError(f"cannot connect to {endpoint}: {why}") from None

    def receive(self) -> list[Frame] | None:
        if not is_readable(self.socket):
            return None
        return [f.buffer for f in self.socket.recv_multipart(zmq.NOBLOCK, copy=False)]

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send; False if there is no connection, or its queue is full.

        Raises UserError where the server refuses this client.
        """
        self._read_monitor()
        if not self._is_connected:
            return False
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def why_unreachable(self) -> str:
        """Return why there is no connection, where that is known."""
        if self._names is not None and self._names.failure:
            return f"the name {self._names.host} is not known ({self._names.failure})"
        return "nothing accepts connections there" if self.retries > 1 else ""

    def close(self) -> None:
        """Send what is queued, for LINGER_MS at most, and close."""
        self.socket.disable_monitor()
        self._events.close(0)
        self.socket.close(LINGER_MS if self._is_connected else 0)
        self._context.term()

    def _read_monitor(self) -> None:
        while is_readable(self._events):
            found, reason = recv_monitor_message(self._events), ""
            event, in_handshake = found["event"], not self._is_connected
            self._is_connected = event == _CONNECTED
            self.retries = self.retries + 1 if event == _RETRIED else 0
            self._was_accepted |= event in (_CONNECTED, _AUTH)
            if event == _RETRIED and self._names and self._names.several:
                self._try_next_at = -math.inf
            elif event == _PROTOCOL:
                reason = self._reasons[0]
            elif event == _AUTH and found["value"] != UNREADABLE:
                reason = UNKNOWN_KEY
            elif event == _DISCONNECTED and in_handshake:
                before, self._disconnected_at = self._disconnected_at, time.monotonic()
                self._connect_again_at = self._disconnected_at + CONNECT_AGAIN_AFTER
                is_again = self._disconnected_at < before + AGAIN_WITHIN
                self._disconnects = self._disconnects + 1 if is_again else 1
                if not self._was_accepted and self._disconnects == ATTEMPTS:
                    reason = self._reasons[1]
            if reason:
                what = f"{self._endpoint} refuses the handshake: {reason}"
                raise UserError(what, code=RUN_FAILED)
        if not self._is_connected and not self.socket.poll(0):
            self._try_to_connect(time.monotonic())  # it drops the server's last messages

    def _try_to_connect(self, now: float) -> None:
        """Connect again where libzmq does not: after a refusal, and to a name's next address."""
        if now >= self._connect_again_at:
            self._connect_again_at = math.inf
            self._connect(self._endpoint)
        if self._names is None or now < self._try_next_at:
            return
        if self._try_next_at > -math.inf:  # the last address did not refuse
            self.retries = 0
        if (endpoint := self._names.next()) is not None:
            self._try_next_at = now + TRY_FOR
            if endpoint != self._endpoint:
                self._connect(endpoint)

    def _connect(self, endpoint: str) -> None:
        if self._endpoint:
            with contextlib.suppress(zmq.ZMQError):
                self.socket.disconnect(self._endpoint)
        self._endpoint = endpoint
        self.socket.setsockopt(zmq.IPV6, zmq_ipv6(endpoint))
        self.socket.connect(endpoint)
