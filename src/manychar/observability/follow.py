"""Follows a live run from outside the fleet, and tells the sinks what it is told."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from manychar.network.keys import ClientKey
from manychar.observability.exporters import Exporter, Pages, exporters
from manychar.observability.model_source import as_it_trains
from manychar.observability.observer_client import IN_GOOD_ORDER, Watch, sight_of
from manychar.processes import log
from manychar.processes.errors import RUN_FAILED, UserError
from manychar.protocol.effects import Effect, Finish, Log, Show
from manychar.protocol.messages import Report, Roster, Weights, Welcome

logger = logging.getLogger(__name__)


SAMPLE_LENGTH = 200


def follow(
    endpoint: str,
    key: ClientKey | None,
    *,
    patience: float,
    tensorboard: Path | None = None,
    metrics_port: int | None = None,
) -> None:
    """Pass a run on until it ends. A server that is lost is waited for, `patience` seconds.

    Raises UserError where it refuses, fails, or does not come back, and as `sinks` does.
    """
    with contextlib.closing(Watch(endpoint, key, patience=patience)) as visit:
        effects: list[Effect] = []
        while visit.welcome is None:
            if _end_if_it_has(effects, endpoint):
                return
            effects = visit.turn()
        with exporters(
            visit.welcome.dimensions, tensorboard=tensorboard, metrics_port=metrics_port
        ) as beside:
            pages = Pages()
            while True:
                _tell(effects, beside, pages, visit.welcome)
                if _end_if_it_has(effects, endpoint):
                    return
                effects = visit.turn()


def _tell(
    effects: list[Effect], beside: Sequence[Exporter], pages: Pages, welcome: Welcome
) -> None:
    for effect in effects:
        match effect:
            case Show(Report() as report):
                for sink in beside:
                    sink.report(report)
            case Show(Roster() as roster):
                if (workers := pages.take(roster)) is not None:
                    for sink in beside:
                        sink.workers(workers)
            case Show(Weights(version=version) as weights) if version > 0:
                text = _sample(welcome, weights)
                for sink in beside:
                    sink.sample(version, text)


def _sample(welcome: Welcome, weights: Weights) -> str:
    sight = sight_of(welcome, weights)
    return as_it_trains(
        sight.parameters,
        sight.vocabulary,
        seed=welcome.seed,
        step=sight.step,
        length=SAMPLE_LENGTH,
    )


def _end_if_it_has(effects: list[Effect], endpoint: str) -> bool:
    """Say what is to be said; return whether the run has ended well. Raises UserError."""
    for effect in effects:
        match effect:
            case Log(text, level):
                logger.log(log.NUMBERS[level], text)
            case Finish(code, reason) if code in IN_GOOD_ORDER:
                logger.info(reason or f"{endpoint}: the run has ended")
                return True
            case Finish(code, reason):
                raise UserError(reason, code=code or RUN_FAILED)
    return False
