"""The event loop of every process that waits: sockets, signals, deadlines and other threads.

One turn polls once, then calls in this order: the callbacks of signals, of `wake`, of what can be
read, and of deadlines that have passed. So messages are read before silence is measured.
"""

import contextlib
import math
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import zmq

from manychar.processes.parent_death import has_parent
from manychar.processes.signals import STOPS, end_at_once, handle

TURN_EVERY = 0.005  # seconds between two turns of a loop whose thread computes
SAME_WITHIN = 1.0  # seconds in which a second signal that stops is the first one, sent again
OTHERS_WITHIN: dict[int, float] = {signal.SIGINT: 0.0, signal.SIGHUP: math.inf}
SUSPENDED_AFTER = 1.0  # seconds past a deadline that a loop without load never sleeps

Source = zmq.Socket[Any] | int  # a ZeroMQ socket or a file descriptor
Deadline = Callable[[], float | None]


class EventLoop(contextlib.ExitStack):
    """Waits for everything at once; its end restores signal handlers and leaves sources open."""

    def __init__(self) -> None:
        super().__init__()
        self._poller = zmq.Poller()
        self._pipe_end, self._pipe = socket.socketpair()  # signals and threads write to it
        for end in (self._pipe_end, self._pipe):
            end.settimeout(0)
            self.callback(end.close)
        self._poller.register(self._pipe_end.fileno(), zmq.POLLIN)
        self._caught: list[int] = []
        self._readable: dict[Any, Callable[[], object]] = {}
        self._signals: dict[int, Callable[[int], object]] = {}
        self._deadlines: list[tuple[Deadline, Callable[[], object]]] = []
        self._woken: Callable[[], object] = lambda: None
        self._suspended: list[Callable[[float], object]] = []
        self._stopped_at = math.inf  # when the first signal that stops came
        self._look_at = -math.inf
        self._off_core = time.monotonic() - time.thread_time()  # seconds on no core, from any zero

    def on_readable(self, source: Source, callback: Callable[[], object]) -> None:
        """Call back while the socket or descriptor can be read."""
        self._readable[source] = callback
        self._poller.register(source, zmq.POLLIN)

    def on_signal(self, callback: Callable[[int], object], *numbers: int) -> None:
        """Call back with the number of each of these signals.

        A second one that stops ends a process without parent at once. Schedulers and `timeout` send
        one to a process and to its group, so only one that comes later counts; of Ctrl-C each does.
        A child may get both from its parent and from a container engine. SIGHUP does not count: a
        shell whose terminal closes sends it once more.
        """
        self._signals |= dict.fromkeys(numbers, callback)
        before = signal.set_wakeup_fd(self._pipe.fileno(), warn_on_full_buffer=False)
        self.callback(signal.set_wakeup_fd, before)
        for number, handler in handle(*numbers, by=self._catch).items():
            self.callback(signal.signal, number, handler)

    def _catch(self, number: int, frame: object) -> None:
        if number in STOPS and not has_parent():
            now = time.monotonic()
            if now >= self._stopped_at + OTHERS_WITHIN.get(number, SAME_WITHIN):
                end_at_once(number, frame)
            if self._stopped_at != math.inf:  # the first one, sent again
                return
            self._stopped_at = now
        self._caught.append(number)

    def on_deadline(self, deadline: Deadline, callback: Callable[[], object]) -> None:
        """Call back in each turn in which `deadline()` has passed; None is never."""
        self._deadlines.append((deadline, callback))

    def on_wake(self, callback: Callable[[], object]) -> None:
        """Call this one function after `wake` was called, or a signal came."""
        self._woken = callback

    def on_suspension(self, callback: Callable[[float], object]) -> None:
        """Call back with the seconds by which the loop slept too long: the process was stopped.

        Time off the cores between two turns counts, too, because the thread may compute there.
        """
        self._suspended.append(callback)

    def remove(self, source: Source) -> None:
        """Watch a socket or descriptor no more; to be called before it is closed."""
        if self._readable.pop(source, None) is not None:
            self._poller.unregister(source)

    def wake(self) -> None:
        """End the present or the next sleep; from any thread."""
        with contextlib.suppress(BlockingIOError):
            self._pipe.send(b"\0")

    def _notice_suspension(self, waited: float = 0.0) -> None:
        before, self._off_core = self._off_core, time.monotonic() - time.thread_time()
        if (late := self._off_core - before - waited) > SUSPENDED_AFTER:
            for suspended in self._suspended:
                suspended(late)

    def turn(self, at_most: float = math.inf) -> None:
        """Wait until something happens, for `at_most` seconds, and call back.

        Where a thread that computes does not wait, it looks for deadlines once in TURN_EVERY.
        """
        if at_most == 0 and time.monotonic() < self._look_at:
            self._call_back(0)
            return
        times = [due for deadline, _ in self._deadlines if (due := deadline()) is not None]
        began, first = time.monotonic(), min(times, default=math.inf)
        wait = max(0.0, min(first - began, at_most))
        self._call_back(wait)
        if (now := time.monotonic()) >= first:
            self._notice_suspension()  # during one of the callbacks
            for deadline, passed in self._deadlines:
                if (due := deadline()) is not None and time.monotonic() >= due:
                    passed()
        self._look_at = now + TURN_EVERY

    def _call_back(self, wait: float) -> None:
        """Wait for so many seconds at most, then call the callbacks of what has happened."""
        began = time.monotonic()
        ready = dict(self._poller.poll(None if wait == math.inf else int(1000 * wait) + bool(wait)))
        self._notice_suspension(min(wait, time.monotonic() - began))
        if ready.pop(self._pipe_end.fileno(), None):
            with contextlib.suppress(BlockingIOError):
                while self._pipe_end.recv(4096):
                    pass
            caught, self._caught = self._caught, []
            for number in caught:
                self._signals[number](number)
            self._woken()
        for source in ready:
            if (readable := self._readable.get(source)) is not None:  # not removed meanwhile
                readable()
