"""Reports to systemd by the datagrams of sd_notify(3), where a service manager listens.

"Alive" comes from the event loop, so that a process whose loop hangs is restarted.
"""

import contextlib
import os
import socket
import time

SOCKET, WATCHDOG, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
STATUS_EVERY = 1.0


class Notifier:
    """The connection to a service manager, if there is one; children of this process get none.

    `variables` were taken out of the environment; an exec of this process needs them there again.
    """

    def __init__(self) -> None:
        names = (SOCKET, WATCHDOG, WATCHDOG_PID)
        self.variables = {name: os.environ.pop(name) for name in names if name in os.environ}
        address = self.variables.get(SOCKET, "")
        watched = self.variables.get(WATCHDOG_PID, str(os.getpid())) == str(os.getpid())
        microseconds = self.variables.get(WATCHDOG, "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._alive_every = int(microseconds) / 2e6 if watched and microseconds.isdecimal() else 0.0
        self._alive_at = self._status_at = 0.0

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        now = time.monotonic()
        if self._alive_every and now >= self._alive_at:
            self._alive_at = now + self._alive_every
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Report its status, at most once a second."""
        now = time.monotonic()
        if now >= self._status_at:
            self._status_at = now + STATUS_EVERY
            self._send(f"STATUS={text}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # The service manager notices a lost datagram: it waits for READY and for signs of life.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.settimeout(0)
            to.sendto(text.encode(), self._address)
