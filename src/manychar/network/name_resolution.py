"""A server's host name: looked up until there are addresses, which are tried one after the other.

libzmq looks a name up once, blocks while it does, and takes one address of one family. So it is
given addresses only.
"""

import math
import socket
import threading
import time

from manychar.network.endpoints import bracketed
from manychar.processes.errors import start_thread
from manychar.processes.log import logger

LOOK_UP_AGAIN_AFTER = 2.0
TRY_FOR = 5.0  # as long as a server lets a handshake take: the network may be slow


class NameResolver:
    """The endpoints that a name stands for, again and again; each round is a new look-up.

    getaddrinfo(3) can block for half a minute where no name server answers, and a signal does not
    end it. So each look-up has a thread: Ctrl-C and time limits take effect meanwhile.
    """

    def __init__(self, host: str, port: str) -> None:
        self.several = False
        self.failure = "no name server has answered"
        self.host, self._port = host, port
        self._untried: list[str] = []
        self._thread = threading.Thread()
        self._look_up_at = -math.inf
        self._logged: set[str] = set()

    def next(self) -> str | None:
        """Return the endpoint to try now; None while there is none."""
        if self._untried:
            endpoint = self._untried.pop(0)
            self._log(f"{self.host}: trying {endpoint}")
            return endpoint
        if not self._thread.is_alive() and time.monotonic() >= self._look_up_at:
            self._look_up_at = time.monotonic() + LOOK_UP_AGAIN_AFTER
            self._thread = threading.Thread(target=self._look_up, name="look-up", daemon=True)
            start_thread(self._thread)
        return None

    def _look_up(self) -> None:
        try:
            found = socket.getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = str(getattr(error, "strerror", None) or error).lower()
            self.failure = reason
            self._log(f"{self.host}: {reason}; asking again")
            return
        hosts = dict.fromkeys(str(address[0]) for *_, address in found)
        self.several, self.failure = len(hosts) > 1, ""
        self._untried = [f"tcp://{bracketed(host)}:{self._port}" for host in hosts]

    def _log(self, line: str) -> None:
        if line not in self._logged:
            self._logged.add(line)
            logger.info(line)
