"""A thread beside the server's loop that follows its socket's connections and ends floods.

It goes on looking while the loop computes, waits for the disk, or begins a new term. What it is
told, and what it tells, goes through queues.
"""

import collections
import contextlib
import queue
import threading
import time
from typing import Any, NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from manychar.network.flood import Floods
from manychar.protocol.messages import Peer

LOOK_EVERY = 0.025
IDLE_EVERY = 0.1  # where nobody is connected
SHARE_OF_TIME = 0.05  # that looking may take where there are very many, and memory does not grow
_EVENTS_AT = "inproc://events"
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class _Handed(NamedTuple):
    """A message of `size` bytes on the wire was handed over."""

    peer: Peer
    descriptor: int
    size: int


class _Leased(NamedTuple):
    """A peer was leased a shard."""

    peer: Peer


class Guard:
    """Looks at the connections of one ROUTER until it is closed."""

    def __init__(
        self, context: "zmq.Context[Any]", watched: "zmq.Socket[bytes]", floods: Floods
    ) -> None:
        """Follow a socket that is not bound yet: who comes before has no account."""
        self._watched, self._floods = watched, floods
        watched.monitor(_EVENTS_AT, _FAILED | zmq.EVENT_ACCEPTED)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # libzmq's thread waits where an event has no place
        self._monitor.connect(_EVENTS_AT)
        self._notes: collections.deque[_Handed | _Leased] = collections.deque()
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        floods.on_end = self._ended.put
        self._all_read = False
        self._failed = self._failed_said = 0
        self._fault: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="guard", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more. To be called before the socket is closed."""
        self._closing.set()
        self._thread.join()
        self._watched.disable_monitor()
        self._monitor.close(0)
        self._floods.close()

    def handed_over(self, peer: Peer, descriptor: int, size: int) -> None:
        """Note that the socket gave a message, of `size` bytes on the wire."""
        self._notes.append(_Handed(peer, descriptor, size))

    def leased(self, peer: Peer) -> None:
        """Note that a peer was leased a shard, and will send long messages."""
        self._notes.append(_Leased(peer))

    def all_read(self) -> None:
        """Note that no whole message waits to be read."""
        self._all_read = True

    def ended(self) -> list[str]:
        """Return whose connections were ended since the last call: addresses and ports.

        Raises whatever has ended the thread.
        """
        if self._fault is not None:
            raise self._fault
        return [self._ended.get() for _ in range(self._ended.qsize())]

    def failed_handshakes(self) -> int:
        """Return how many have failed since the last call: no key, another server's, or garbage."""
        failed = self._failed - self._failed_said
        self._failed_said += failed
        return failed

    def _work(self) -> None:
        due = 0.0
        try:
            while not self._closing.wait(LOOK_EVERY if self._floods else IDLE_EVERY):
                began = time.monotonic()
                if began >= due or self._floods.has_grown():
                    self.look(began)
                    ended = time.monotonic()
                    due = ended + (ended - began) / SHARE_OF_TIME - LOOK_EVERY
        except Exception as error:  # the loop says it
            self._fault = error

    def look(self, now: float) -> None:
        """Take up the notes, and the events, and look at every connection."""
        all_read = self._all_read  # before the notes: theirs may be later
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        self._follow_events(now)
        for note in notes:
            match note:
                case _Handed(peer, descriptor, size):
                    self._floods.read(peer, descriptor, size, now)
                case _Leased(peer):
                    self._floods.leased(peer)
        self._floods.look(all_read=all_read, now=now)
        self._all_read = False  # what it was said of may have come before the look

    def _follow_events(self, now: float) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
                if event["event"] == zmq.EVENT_ACCEPTED:
                    self._floods.accepted(int(event["value"]), now)
                else:
                    self._failed += 1
