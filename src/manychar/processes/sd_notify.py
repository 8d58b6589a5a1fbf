"""Tells systemd how this process does: ready, alive, stopping, and a line of status.

The datagrams of sd_notify(3). Where no service manager listens nothing is sent. "Alive" comes from
the loop that thinks, so that one which hangs is restarted.
"""

import contextlib
import os
import socket
import time

SOCKET, WATCHDOG, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
STATUS_EVERY = 1.0


class Notifier:
    """The connection to a service manager, if there is one; children of this process get none.

    `variables` were taken out of the environment; who executes this process anew puts them back.
    """

    def __init__(self) -> None:
        names = (SOCKET, WATCHDOG, WATCHDOG_PID)
        self.variables = {name: os.environ.pop(name) for name in names if name in os.environ}
        address = self.variables.get(SOCKET, "")
        watched = self.variables.get(WATCHDOG_PID, str(os.getpid())) == str(os.getpid())
        microseconds = self.variables.get(WATCHDOG, "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._alive_every = int(microseconds) / 2e6 if watched and microseconds.isdecimal() else 0.0
        self._alive_at = 0.0
        self._status_at = 0.0

    def ready(self, status: str) -> None:
        """Say that this process does its work from now on."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Say that it ends in good order."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Say so, if it is time."""
        now = time.monotonic()
        if self._alive_every and now >= self._alive_at:
            self._alive_at = now + self._alive_every
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say how it stands, about every second."""
        now = time.monotonic()
        if now >= self._status_at:
            self._status_at = now + STATUS_EVERY
            self._send(f"STATUS={text}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A manager that does not hear it finds out: it waits for READY, or for a sign of life.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ear,
        ):
            ear.settimeout(0)
            ear.sendto(text.encode(), self._address)
