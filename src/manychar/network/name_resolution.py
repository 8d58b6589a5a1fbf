"""A server's name: asked for until there are addresses, which are then tried one after the other.

libzmq looks a name up once, blocks while it does, and takes one address of one family. So names are
looked up here, in a thread, because the answer may take seconds; libzmq is given addresses only.
"""

import ipaddress
import queue
import socket
import threading
import time

ASK_AGAIN_AFTER = 2.0
TRY_FOR = 5.0  # as long as a server lets a handshake take: the way may be a slow one


def is_name(host: str) -> bool:
    """Whether a host has to be looked up."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host != "*"
    return False


class Search:
    """The endpoints that a name stands for; `next` gives them round and round, asking anew."""

    def __init__(self, host: str, port: str) -> None:
        self._host, self._port = host, port
        self._answers: queue.SimpleQueue[list[str] | str] = queue.SimpleQueue()
        self._untried: list[str] = []
        self._said: set[str] = set()
        self._unsaid: list[str] = []
        self._asking = False
        self._ask_at = 0.0
        self.several = False

    def next(self) -> str | None:
        """Return the endpoint to try now; None while there is none."""
        self._hear()
        now = time.monotonic()
        if not self._untried and not self._asking and now >= self._ask_at:
            self._asking, self._ask_at = True, now + ASK_AGAIN_AFTER
            threading.Thread(target=self._look_up, name="name", daemon=True).start()
        if not self._untried:
            return None
        endpoint = self._untried.pop(0)
        self._say(f"{self._host} is looked for at {endpoint}")
        return endpoint

    def news(self) -> list[str]:
        """Return the lines to say, each once."""
        lines, self._unsaid = self._unsaid, []
        return lines

    def _hear(self) -> None:
        try:
            answer = self._answers.get_nowait()
        except queue.Empty:
            return
        self._asking = False
        if isinstance(answer, str):
            self._say(f"{self._host}: {answer}; asking again")
        else:
            self._untried, self.several = answer, len(answer) > 1

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._unsaid.append(line)

    def _look_up(self) -> None:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self._answers.put(str(getattr(error, "strerror", None) or error).lower())
            return
        hosts = dict.fromkeys(str(address[0]) for *_, address in found)
        self._answers.put(
            [f"tcp://[{h}]:{self._port}" if ":" in h else f"tcp://{h}:{self._port}" for h in hosts]
        )
