"""A peer that only looks, from outside the fleet: takes a live server's weights, or has it stop."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Generator

import numpy as np

from manychar.network.client_identity import hello
from manychar.network.dealer import Dealer
from manychar.network.keys import ClientKey
from manychar.numerics.model import Parameters
from manychar.observability.exporters import Pages
from manychar.processes import log
from manychar.processes.errors import INTERRUPTED, RUN_FAILED, STOPPED, UserError
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.effects import Effect, Finish, Log, PeerError, Send, Show
from manychar.protocol.events import DeadlinePassed, LeaveRequested, Received
from manychar.protocol.messages import (
    Dimensions,
    Message,
    Report,
    Role,
    Roster,
    Stop,
    Weights,
    Welcome,
    WorkerStats,
)
from manychar.protocol.observer import Observer

logger = logging.getLogger(__name__)


POLL_MS = 100
ASK_AGAIN_AFTER = 1.0
LOOK_EVERY = 1.0
IN_GOOD_ORDER = (0, STOPPED, INTERRUPTED)


class Watch:
    """A visit to a live server. `welcome` is there once the server has let this observer in."""

    def __init__(self, endpoint: str, key: ClientKey | None, *, patience: float) -> None:
        self._endpoint = endpoint
        self._dealer = Dealer(endpoint, key)
        me = hello(Role.OBSERVER, key.name if key else None)
        now = time.monotonic()
        self._machine = Observer(me, server=endpoint, connect_timeout=patience, now=now)

    @property
    def welcome(self) -> Welcome | None:
        """The server's welcome."""
        return self._machine.session.welcome

    @property
    def connecting(self) -> bool:
        """Whether the server is still, or again, to be heard from."""
        return self._machine.session.connecting

    def turn(self) -> list[Effect]:
        """Wait a moment; return what the machine asks for, but for sending.

        Raises UserError where the server speaks another language.
        """
        self._dealer.socket.poll(POLL_MS)
        effects = []
        try:
            while (frames := self._dealer.receive()) is not None:
                message = decode(frames, self._machine.dimensions)
                effects += self._machine.handle(Received(message), time.monotonic())
        except (WireError, PeerError) as error:
            raise UserError(f"{self._endpoint}: not understood: {error}", code=RUN_FAILED) from None
        effects += self._machine.handle(DeadlinePassed(), time.monotonic())
        for effect in effects:
            if isinstance(effect, Send):
                self.send(effect.message)
        return [self._with_refusal(e) for e in effects if not isinstance(e, Send)]

    def _with_refusal(self, effect: Effect) -> Effect:
        """Add to the reason of an end before the handshake why there was none."""
        if isinstance(effect, Finish) and self._dealer.refusal and self.welcome is None:
            return Finish(effect.code, f"{effect.reason}: {self._dealer.refusal}")
        return effect

    def send(self, message: Message) -> None:
        """Send to the server."""
        self._dealer.send(encode(message))

    def close(self) -> None:
        """Say goodbye and close."""
        for effect in self._machine.handle(
            LeaveRequested(0, "it has seen enough"), time.monotonic()
        ):
            if isinstance(effect, Send):
                self.send(effect.message)
        self._dealer.close()


def fetch(endpoint: str, key: ClientKey | None, *, patience: float) -> tuple[Parameters, str]:
    """Return (parameters, vocabulary) of a live server: its newest weights.

    Raises UserError where no server answers within `patience` seconds, or it refuses.
    """
    sight = _visit(endpoint, key, patience=patience)
    return sight.parameters, sight.vocabulary


def _visit(endpoint: str, key: ClientKey | None, *, patience: float) -> "Sight":
    with contextlib.closing(follow(endpoint, key, patience=patience, change=0.0)) as sights:
        return next(sights)


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a run stands, how each of its workers does, and for whom it waits, if it does."""

    dimensions: Dimensions
    report: Report
    workers: tuple[WorkerStats, ...]
    waiting: str = ""


def look(endpoint: str, key: ClientKey | None, *, patience: float) -> Standing:
    """Return how a live server's run stands. Raises UserError as `fetch` does."""
    with contextlib.closing(watch(endpoint, key, patience=patience)) as standings:
        return next(standings)


def watch(endpoint: str, key: ClientKey | None, *, patience: float) -> Generator[Standing]:
    """Yield how a live server's run stands, at once and about every second, until it ends well.

    Raises UserError where no server answers within `patience` seconds, it refuses, or it fails.
    """
    report: Report | None = None
    reported_at = 0.0
    pages = Pages()
    with contextlib.closing(Watch(endpoint, key, patience=patience)) as visit:
        while True:
            for effect in visit.turn():
                match effect:
                    case Show(Report() as report):
                        reported_at = time.monotonic()
                    case Show(Roster() as roster):
                        workers, welcome = pages.take(roster), visit.welcome
                        if report is not None and welcome is not None and workers is not None:
                            now = _aged(report, time.monotonic() - reported_at)
                            yield Standing(welcome.dimensions, now, workers, roster.waiting)
                    case Log(text, level):
                        logger.log(log.NUMBERS[level], text)
                    case Finish(code, reason) if report is not None and code in IN_GOOD_ORDER:
                        logger.info(reason or "the run has ended")
                        return
                    case Finish(code, reason):
                        reason = reason or f"{endpoint}: the run has ended"
                        raise UserError(reason, code=code or RUN_FAILED)


def _aged(report: Report, seconds: float) -> Report:
    """Return what a report says that much later, when nothing has happened since."""
    return dataclasses.replace(
        report,
        seconds=report.seconds + seconds,
        checkpoint_age=report.checkpoint_age + seconds,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Sight:
    """A live server's weights as they were at one step."""

    step: int
    parameters: Parameters
    vocabulary: str


def follow(
    endpoint: str, key: ClientKey | None, *, patience: float, change: float
) -> Generator[Sight]:
    """Yield a live server's weights, and again whenever they have changed enough, until it ends.

    `change` is relative: the norm of the difference by the norm of those yielded last. They are
    looked at about every second. Raises UserError as `fetch` does.
    """
    seen: Sight | None = None
    look_at = 0.0
    with contextlib.closing(Watch(endpoint, key, patience=patience)) as visit:
        while True:
            for effect in visit.turn():
                found = None
                match effect:
                    case Show(Weights() as weights) if visit.welcome is not None:
                        found = sight_of(visit.welcome, weights)
                    case Show(Report() as report) if time.monotonic() >= look_at:
                        look_at = time.monotonic() + LOOK_EVERY
                        if seen is not None and report.step > seen.step:
                            with contextlib.suppress(UserError):  # this visit is told the end, too
                                found = _visit(endpoint, key, patience=LOOK_EVERY)
                    case Log(text, level):
                        logger.log(log.NUMBERS[level], text)
                    case Finish(code, reason) if seen is not None and code in IN_GOOD_ORDER:
                        logger.info(reason or "the run has ended")
                        return
                    case Finish(code, reason):
                        raise UserError(reason, code=code or RUN_FAILED)
                if found is not None and (seen is None or _change(seen, found) >= change):
                    seen = found
                    yield found


def _change(before: Sight, now: Sight) -> float:
    old, new = before.parameters.flat, now.parameters.flat
    return float(np.linalg.norm(new - old) / max(float(np.linalg.norm(old)), 1e-30))


def sight_of(welcome: Welcome, weights: Weights) -> Sight:
    """Return the weights of a message as parameters."""
    size = welcome.dimensions
    flat = np.frombuffer(weights.weights, np.dtype(size.dtype).newbyteorder("<")).copy()
    parameters = Parameters(flat, size.vocabulary_size, size.hidden)
    return Sight(weights.version, parameters, bytes(welcome.vocabulary).decode())


def stop(endpoint: str, key: ClientKey | None, *, patience: float) -> str:
    """Have a server end its step, write a checkpoint and finish; return its last words.

    Raises UserError where no server answers, or the run ended in another way.
    """
    asked, again_at = False, 0.0
    with contextlib.closing(Watch(endpoint, key, patience=patience)) as watch:
        while True:
            for effect in watch.turn():
                if isinstance(effect, Log):
                    logger.log(log.NUMBERS[effect.level], effect.text)
                elif isinstance(effect, Finish) and not asked:
                    raise UserError(effect.reason, code=effect.code or RUN_FAILED)
                elif isinstance(effect, Finish) and effect.code == RUN_FAILED:
                    raise UserError(effect.reason, code=effect.code)
                elif isinstance(effect, Finish):
                    return effect.reason
            now = time.monotonic()
            if (welcome := watch.welcome) is not None and now >= again_at:
                asked, again_at = True, now + ASK_AGAIN_AFTER
                watch.send(Stop(run=welcome.run, term=welcome.term))
