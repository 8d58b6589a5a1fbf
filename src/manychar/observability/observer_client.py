"""The one client of all programs that watch a live run: status, weights, requests to the server."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TypeVar

from manychar.network.client_identity import make_hello
from manychar.network.connection_limit import need_files
from manychar.network.dealer import Dealer
from manychar.network.endpoints import is_endpoint, is_local, reachable
from manychar.network.event_loop import EventLoop
from manychar.network.keys import ClientKey, read_client_key
from manychar.observability.snapshot import Snapshot, Snapshots
from manychar.processes.errors import INTERRUPTED, RUN_FAILED, STOPPED, UserError
from manychar.processes.log import NUMBERS, logger
from manychar.processes.parent_death import stopped_by
from manychar.processes.signals import STOPS, end_by_exception
from manychar.protocol import messages
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.effects import Effect, Finish, Log, Send, Show
from manychar.protocol.events import DeadlinePassed, LeaveRequested, PeerError, Received, Suspended
from manychar.protocol.observer import Observer
from manychar.storage.server_address import ADDRESS_NAME, is_served, no_server, read_address

TURN_MS = 100
LOOK_EVERY = 0.05  # seconds, while a server starts
ASK_AGAIN_AFTER = 1.0
MOST_WEIGHTS = 3  # in a turn: drawing samples must not fall behind the run
ENDED_WELL = (0, STOPPED, INTERRUPTED)


class NoAnswerError(UserError):
    """The server that holds a run directory does not answer."""


Event = Snapshot | messages.Weights | messages.Unbanned

T = TypeVar("T")


class ObserverClient:
    """An observer of one server. `turn` never waits: poll `socket`, until `deadline` at most.

    `end` says how it ended, once it has.
    """

    def __init__(
        self, source: str, key: ClientKey | None = None, *, connect_timeout: float
    ) -> None:
        need_files("an observer")
        self.endpoint, key = find_server(source, key, connect_timeout=connect_timeout)
        self._source = source
        self._dealer = Dealer(self.endpoint, key)
        self._hello = make_hello(messages.Role.OBSERVER, key.name if key else None)
        self._snapshots = Snapshots()
        self._next_request = 0.0
        self.socket = self._dealer.socket
        self.connect(connect_timeout)

    def connect(self, connect_timeout: float) -> None:
        """Connect, or connect again after an end: for `connect_timeout` seconds at most."""
        now = time.monotonic()
        self._connect_timeout = connect_timeout
        self._machine = Observer(
            self._hello, server=self.endpoint, connect_timeout=connect_timeout, now=now
        )
        self.end: Finish | None = None
        self.is_held = False  # the run directory, by a server that does not answer

    @property
    def welcome(self) -> messages.Welcome | None:
        return self._machine.session.welcome

    @property
    def connecting(self) -> bool:
        """Whether the server has not answered yet, or does not answer any more."""
        return self._machine.session.connecting

    def deadline(self) -> float | None:
        """When the next `turn` is due, on the monotonic clock."""
        return self._machine.deadline()

    def turn(self) -> list[Event]:
        """Receive and send what is due; return what has come, of many weights the newest.

        Raises UserError where the server refuses, or is none of this version.
        """
        effects: list[Effect] = []
        try:
            while (frames := self._dealer.receive()) is not None:
                message = decode(frames, self._machine.dimensions)
                effects += self._machine.handle(Received(message), time.monotonic())
        except (WireError, PeerError) as error:
            raise UserError(f"{self.endpoint}: not understood: {error}", code=RUN_FAILED) from None
        passed = DeadlinePassed(self._dealer.why_unreachable())
        due = self._machine.handle(passed, time.monotonic())
        return self._events([*effects, *map(self._explained, due)])

    def _events(self, effects: Iterable[Effect]) -> list[Event]:
        events: list[Event] = []
        for effect in effects:
            match effect:
                case Send(message):
                    self._dealer.send(encode(message))
                case Log(text, level):
                    logger.log(NUMBERS[level], text)
                case Show(messages.Status() as status) if self.welcome is not None:
                    snapshot = self._snapshots.add(status, self.welcome.dimensions)
                    events += [] if snapshot is None else [snapshot]
                case Show(messages.Weights() as weights):
                    earlier = [event for event in events if isinstance(event, messages.Weights)]
                    if len(earlier) == MOST_WEIGHTS:
                        events.remove(earlier[0])
                    events.append(weights)
                case Show(messages.Unbanned() as answer):
                    events.append(answer)
                case Finish():
                    self.end = effect
        return events

    def _explained(self, effect: Effect) -> Effect:
        """Return an effect of time; an end names the server that holds the run, if one does."""
        address = read_address(Path(self._source)) if isinstance(effect, Finish) else None
        if not isinstance(effect, Finish) or address is None:
            return effect
        self.is_held = True
        reason = (
            f"{self._source}: its server, process {address.process} on {address.host}, holds the"
            f" run, but has not answered for {self._connect_timeout:g} s (--connect-timeout), or"
            " accepts no connections"
        )
        return Finish(effect.code, reason)

    def suspended(self, seconds: float) -> None:
        """Do not count the time in which this process was stopped as silence of the server."""
        self._machine.handle(Suspended(seconds), time.monotonic())

    def request(self, kind: Callable[..., messages.Message], **fields: str) -> None:
        """Send a WeightsRequest, Stop or Unban; nothing within a second of the last request."""
        now, welcome = time.monotonic(), self.welcome
        if welcome is not None and not self.connecting and now >= self._next_request:
            self._next_request = now + ASK_AGAIN_AFTER
            self._dealer.send(encode(kind(**welcome.run_and_term, **fields)))

    def close(self) -> None:
        """Tell the server that this observer leaves, and close."""
        left = LeaveRequested(0, "the observer ends")
        self._events(self._machine.handle(left, time.monotonic()))
        self._dealer.close()


def find_server(
    source: str, key: ClientKey | None, *, connect_timeout: float = 0
) -> tuple[str, ClientKey | None]:
    """Return the endpoint of a server, and the key to it: of a run directory, its server's own.

    Waits for one that starts. Raises UserError where none is running on it, or cannot be reached
    from here.
    """
    if is_endpoint(source):
        return source, key
    if not Path(source).is_dir():
        form = "write that as tcp://HOST:PORT or ipc://PATH"
        raise UserError(f"{source}: no such directory, and not an endpoint: {form}")
    deadline = time.monotonic() + connect_timeout
    while (address := read_address(Path(source))) is None:
        error = no_server(Path(source))
        file = Path(source, ADDRESS_NAME)
        is_damaged = os.access(file, os.R_OK)  # else another user's, where it exists
        if not is_served(Path(source)) or (file.exists() and not is_damaged):
            raise error
        if is_damaged or time.monotonic() >= deadline:
            raise NoAnswerError(str(error), code=error.code)
        time.sleep(LOOK_EVERY)
    is_here = address.host == socket.gethostname()
    if is_local(address.endpoint) and not is_here:
        where = f"{address.endpoint} is reached only on {address.host}"
        raise UserError(f"{source}: its server's endpoint {where}", code=RUN_FAILED)
    if address.key is None:  # whatever key there is, it is for another server
        key = None
    elif key is None and Path(address.key).exists():
        key = read_client_key(Path(address.key))
    return reachable(address.endpoint, "127.0.0.1" if is_here else address.host), key


def events_of(
    client: ObserverClient, kind: type[T], ask: Callable[[], None] = lambda: None
) -> Generator[T]:
    """Yield events of a kind (`object`: all) until the run has ended well; then close `client`.

    `ask` is called before each turn. Raises UserError where no server answers within the
    connect timeout, it refuses, or the run fails, and SystemExit at a signal that stops.
    """
    with contextlib.closing(client), EventLoop() as loop:
        loop.on_signal(_end, *STOPS)
        loop.on_suspension(client.suspended)
        loop.on_readable(client.socket, lambda: None)
        while (end := client.end) is None:
            ask()
            loop.turn(TURN_MS / 1000)
            yield from (event for event in client.turn() if isinstance(event, kind))
        if end.code not in ENDED_WELL or client.welcome is None:
            failure = NoAnswerError if client.is_held else UserError
            raise failure(end.reason, code=end.code or RUN_FAILED)
        logger.info(end.reason)


def _end(number: int) -> None:
    logger.info(stopped_by(number))
    end_by_exception(number)


def snapshots(source: str, key: ClientKey | None, *, connect_timeout: float) -> Generator[Snapshot]:
    """Return a live run's snapshots, at once and then at least once a second, until it ends well.

    Raises UserError as `events_of` does.
    """
    return events_of(ObserverClient(source, key, connect_timeout=connect_timeout), Snapshot)


def first(found: Generator[T], source: str) -> T:
    """Return the first of what is found, and close it. Raises UserError where there is none."""
    with contextlib.closing(found):
        for each in found:
            return each
    raise UserError(f"{source}: the run has ended", code=RUN_FAILED)


def send_unban(
    source: str, name: str, key: ClientKey | None, *, connect_timeout: float
) -> messages.Unbanned:
    """Have a server lift a ban; return its answer. Raises UserError where there is none."""
    client = ObserverClient(source, key, connect_timeout=connect_timeout)
    found = events_of(client, messages.Unbanned, lambda: client.request(messages.Unban, name=name))
    return first(found, source)
