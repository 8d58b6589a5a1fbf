"""What the sockets of server and clients have in common: limits and times."""

import zmq

from manychar.network.endpoints import zmq_ipv6

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

HIGH_WATER_MARK = 1000
LINGER_MS = 2000
KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 20_000,  # milliseconds until sent data must be acknowledged
}
HANDSHAKE_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_EVENTS_AT = "inproc://events"
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)  # pyzmq's enumerations cost microseconds


def new_socket(context: Context, kind: int, endpoint: str) -> Socket:
    """Return a socket for an endpoint, with bounded queues.

    It sends no ZMTP heartbeats: where a connection ends while the queue of received messages is
    full, libzmq aborts the process that reads a heartbeat among the rest of them. TCP's keepalive
    detects machines that are gone, and the protocol's own heartbeats detect processes that hang.
    """
    made = context.socket(kind)
    made.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    made.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    made.setsockopt(zmq.LINGER, LINGER_MS)
    made.setsockopt(zmq.IPV6, zmq_ipv6(endpoint))
    for option, value in KEEPALIVE.items():
        made.setsockopt(option, value)
    return made


def is_readable(socket: Socket) -> bool:
    """Whether a message has come; a microsecond, where a receive in vain takes twenty."""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)


def monitor_of(context: Context, socket: Socket, events: int) -> Socket:
    """Return a socket that receives these events of another socket's connections.

    It has no high-water mark: libzmq's I/O thread would wait where an event has no room.
    """
    socket.monitor(_EVENTS_AT, events)
    receiver = context.socket(zmq.PAIR)
    receiver.setsockopt(zmq.RCVHWM, 0)
    receiver.connect(_EVENTS_AT)
    return receiver
