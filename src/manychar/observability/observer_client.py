"""The one client of all programs that watch a live run: status, weights, and a request to stop."""

import contextlib
import logging
import time
from collections.abc import Generator, Iterable
from typing import TypeVar

import numpy as np

from manychar.network.client_identity import hello
from manychar.network.dealer import Dealer
from manychar.network.keys import ClientKey
from manychar.numerics.model import Parameters
from manychar.observability.snapshot import Snapshot, Snapshots
from manychar.processes.errors import INTERRUPTED, RUN_FAILED, STOPPED, UserError
from manychar.processes.log import NUMBERS
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.effects import Effect, Finish, Log, PeerError, Send, Show
from manychar.protocol.events import DeadlinePassed, LeaveRequested, Received
from manychar.protocol.messages import (
    Message,
    Notice,
    Role,
    Status,
    Stop,
    Unban,
    Unbanned,
    Weights,
    WeightsRequest,
    Welcome,
)
from manychar.protocol.observer import Observer

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.1
ASK_AGAIN_AFTER = 1.0
ENDED_WELL = (0, STOPPED, INTERRUPTED)

Event = Snapshot | Weights | Log
"""What a turn brings; a Log has been logged already."""

Model = tuple[Parameters, str]
"""Parameters and vocabulary."""

T = TypeVar("T")


class ObserverClient:
    """An observer of one server. `turn` never waits: poll `socket`, until `deadline` at most.

    `end` says how it ended, once it has. The server's notices are logged, unless not `notices`.
    """

    def __init__(
        self,
        endpoint: str,
        key: ClientKey | None = None,
        *,
        connect_timeout: float,
        notices: bool = True,
    ) -> None:
        self.endpoint = endpoint
        self._notices = notices
        self._dealer = Dealer(endpoint, key)
        self._hello = hello(Role.OBSERVER, key.name if key else None)
        self._snapshots: Snapshots | None = None
        self._next_request = 0.0
        self.answer = ""
        self.socket = self._dealer.socket
        self.connect(connect_timeout)

    def connect(self, connect_timeout: float) -> None:
        """Connect, or connect again after an end: for `connect_timeout` seconds at most."""
        now = time.monotonic()
        self._machine = Observer(
            self._hello, server=self.endpoint, connect_timeout=connect_timeout, now=now
        )
        self.end: Finish | None = None

    @property
    def refusal(self) -> str:
        """Why the server refuses the connection, if that is known."""
        return self._dealer.refusal

    @property
    def welcome(self) -> Welcome | None:
        """The server's welcome, once it has admitted this observer."""
        return self._machine.session.welcome

    @property
    def connecting(self) -> bool:
        """Whether the server has not answered yet, or does not answer any more."""
        return self._machine.session.connecting

    def deadline(self) -> float | None:
        """When the next `turn` is due, on the monotonic clock."""
        return self._machine.deadline()

    def turn(self) -> list[Event]:
        """Receive and send what is due; return what has come, of several weights the newest.

        Raises UserError where the other side is no server of this version.
        """
        effects: list[Effect] = []
        try:
            while (frames := self._dealer.receive()) is not None:
                message = decode(frames, self._machine.dimensions)
                received = self._machine.handle(Received(message), time.monotonic())
                if self._notices or not isinstance(message, Notice):
                    effects += received
        except (WireError, PeerError) as error:
            raise UserError(f"{self.endpoint}: not understood: {error}", code=RUN_FAILED) from None
        effects += self._machine.handle(DeadlinePassed(), time.monotonic())
        return self._events(effects)

    def _events(self, effects: Iterable[Effect]) -> list[Event]:
        events: list[Event] = []
        for effect in effects:
            match effect:
                case Send(message):
                    self._send(message)
                case Log(text, level):
                    logger.log(NUMBERS[level], text)
                    events.append(effect)
                case Show(Status() as status):
                    if (snapshot := self._snapshot(status)) is not None:
                        events.append(snapshot)
                case Show(Unbanned(text=text)):
                    self.answer = text
                case Show(Weights() as weights):
                    events = [event for event in events if not isinstance(event, Weights)]
                    events.append(weights)
                case Finish():
                    self.end = effect
        return events

    def _snapshot(self, status: Status) -> Snapshot | None:
        welcome = self._machine.session.welcome
        if self._snapshots is None and welcome is not None:
            self._snapshots = Snapshots(welcome.dimensions)
        return self._snapshots.add(status) if self._snapshots is not None else None

    def request_weights(self) -> None:
        """Ask for the newest weights; a request within a second of the last one is not sent."""
        if (welcome := self._may_ask()) is not None:
            self._send(WeightsRequest(run=welcome.run, term=welcome.term))

    def request_stop(self) -> None:
        """Ask the server to stop; a request within a second of the last one is not sent."""
        if (welcome := self._may_ask()) is not None:
            self._send(Stop(run=welcome.run, term=welcome.term))

    def request_unban(self, name: str) -> None:
        """Ask the server to lift a ban; a request within a second of the last one is not sent."""
        if (welcome := self._may_ask()) is not None:
            self._send(Unban(run=welcome.run, term=welcome.term, name=name))

    def _may_ask(self) -> Welcome | None:
        now = time.monotonic()
        if self.connecting or now < self._next_request:
            return None
        self._next_request = now + ASK_AGAIN_AFTER
        return self.welcome

    def _send(self, message: Message) -> None:
        self._dealer.send(encode(message))

    def close(self) -> None:
        """Say goodbye and close."""
        left = LeaveRequested(0, "the observer ends")
        self._events(self._machine.handle(left, time.monotonic()))
        self._dealer.close()


def events_of(client: ObserverClient) -> Generator[Event]:
    """Yield what comes, until the run has ended well; `client` is closed at the end.

    Raises UserError where no server answers within the connect timeout, it refuses, or it fails.
    """
    with contextlib.closing(client):
        while (end := client.end) is None:
            client.socket.poll(int(1000 * TURN_SECONDS))
            yield from client.turn()
        logger.info(ending_of(client, end))


def ending_of(client: ObserverClient, end: Finish) -> str:
    """Return how a run ended that ended well. Raises UserError for another end."""
    if end.code in ENDED_WELL and client.welcome is not None:
        return end.reason
    refusal = f": {client.refusal}" if client.connecting and client.refusal else ""
    raise UserError(f"{end.reason}{refusal}", code=end.code or RUN_FAILED)


def snapshots(
    endpoint: str, key: ClientKey | None, *, connect_timeout: float
) -> Generator[Snapshot]:
    """Yield a live run's snapshots, at once and then at least once a second, until it ends well.

    Raises UserError as `events_of` does.
    """
    client = ObserverClient(endpoint, key, connect_timeout=connect_timeout)
    with contextlib.closing(events_of(client)) as events:
        yield from (event for event in events if isinstance(event, Snapshot))


def models(
    endpoint: str,
    key: ClientKey | None,
    *,
    connect_timeout: float,
    change: float | None = None,
) -> Generator[tuple[int, Model]]:
    """Yield (step, model) of a live run, again when the weights have changed.

    `change` is relative: the norm of the difference by the norm of those yielded before; None
    yields once. Raises UserError as `events_of` does.
    """
    client = ObserverClient(endpoint, key, connect_timeout=connect_timeout)
    shown, before = -1, None
    with contextlib.closing(events_of(client)) as events:
        for event in events:
            if isinstance(event, Snapshot) and event.status.step > shown:
                client.request_weights()
            if not isinstance(event, Weights) or client.welcome is None:
                continue
            model = model_of(client.welcome, event)
            if before is None or _difference(before, model[0]) >= (change or 0.0):
                shown, before = event.version, model[0]
                yield shown, model
            if change is None:
                return


def _difference(before: Parameters, now: Parameters) -> float:
    norm = float(np.linalg.norm(before.flat))
    return float(np.linalg.norm(now.flat - before.flat)) / max(norm, 1e-30)


def model_of(welcome: Welcome, weights: Weights) -> Model:
    """Return the model that a message with weights carries."""
    size = welcome.dimensions
    flat = np.frombuffer(weights.weights, np.dtype(size.dtype).newbyteorder("<")).copy()
    parameters = Parameters(flat, size.vocabulary_size, size.hidden)
    return parameters, bytes(welcome.vocabulary).decode()


def first(found: Generator[T], endpoint: str) -> T:
    """Return the first of what is found, and close it. Raises UserError where there is none."""
    with contextlib.closing(found):
        for each in found:
            return each
    raise UserError(f"{endpoint}: the run has ended", code=RUN_FAILED)


def stop(endpoint: str, key: ClientKey | None, *, connect_timeout: float) -> str:
    """Have a server end its step, write a checkpoint and finish; return how the run ended.

    Raises UserError where no server answers, it refuses, or the run fails.
    """
    client = ObserverClient(endpoint, key, connect_timeout=connect_timeout)
    with contextlib.closing(client):
        while client.end is None:
            client.request_stop()
            client.socket.poll(int(1000 * TURN_SECONDS))
            client.turn()
        return ending_of(client, client.end)


def unban(endpoint: str, name: str, key: ClientKey | None, *, connect_timeout: float) -> str:
    """Have a server lift a ban; return its answer. Raises UserError where there is none."""
    client = ObserverClient(endpoint, key, connect_timeout=connect_timeout, notices=False)
    with contextlib.closing(client):
        while client.end is None:
            client.request_unban(name)
            client.socket.poll(int(1000 * TURN_SECONDS))
            client.turn()
            if client.answer:
                return client.answer
        raise UserError(ending_of(client, client.end), code=RUN_FAILED)
