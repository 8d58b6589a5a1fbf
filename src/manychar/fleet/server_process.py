"""Starts the server: locks the run, resumes it from its newest checkpoint, listens, and serves it.

Where a wrong gradient had been applied, the process executes itself again and resumes from a
checkpoint before it.
"""

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from manychar.fleet.engine import Engine
from manychar.fleet.launch_options import STARTED_WORKERS
from manychar.fleet.server_loop import Screen, ServerLoop
from manychar.network.endpoints import with_whole_path
from manychar.network.event_loop import EventLoop
from manychar.network.private_endpoint import OBSERVER_KEY
from manychar.network.router import Router
from manychar.processes.child_process import PROGRAM
from manychar.processes.errors import CRASHED, RUN_FAILED, UserError, because, user_errors
from manychar.processes.log import logger
from manychar.processes.signals import STOPS
from manychar.protocol.admission import as_words
from manychar.protocol.effects import Finish
from manychar.protocol.run_spec import RunSpec, dimensions_of
from manychar.protocol.server import ParameterServer
from manychar.storage.append_log import AppendLog
from manychar.storage.event_log import event_log
from manychar.storage.recovery import ResumePoint, recover
from manychar.storage.run_directory import RunDirectory, locked, raise_term
from manychar.storage.server_address import write_address
from manychar.storage.validation_log import unvalidated

PENDING_STOP = "MANYCHAR_PENDING_STOP"


def serve(
    directory: RunDirectory,
    endpoint: str,
    screen: Screen,
    keys: Path | None = None,
    *,
    flags: Sequence[str] = (),
    compute: bool = False,
) -> Finish:
    """Serve a run until it ends, and return how it ended. `keys` say which clients are admitted.

    With `compute`, this process computes a share of the shards, too.
    Where the run has to resume earlier, this process executes itself again; `flags` are what its
    command line has besides --resume and --bind. Raises UserError where the directory is damaged or
    locked, the endpoint is in use, or this machine's numerics are not the run's.
    """
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(EventLoop())
        # First of all: a parent that reads the endpoint may send a signal at once.
        loop.on_signal(lambda number: server.signalled(number), *STOPS)  # noqa: PLW0108 - not yet there
        stack.enter_context(locked(directory))
        with user_errors(directory.path):
            events = stack.enter_context(event_log(directory.path))
            term = raise_term(directory)
            resume_point = recover(directory, term)
            stack.callback(_close, resume_point.journal, resume_point.metrics)
            spec, engine = _resumed_run(directory, term, resume_point)
            directory = _with_numerics(directory, spec)
            directory.write_config()
            machine = ParameterServer(spec, now=time.monotonic())
            router = Router(endpoint, machine.dimensions, keys)
            stack.callback(router.close)
            here = with_whole_path(router.endpoint)
            write_address(directory.path, here, keys and keys / OBSERVER_KEY)
        server = ServerLoop(
            machine=machine,
            engine=engine,
            directory=directory,
            resume_point=resume_point,
            event_log=events,
            router=router,
            screen=screen,
            loop=loop,
            compute=compute,
        )
        screen.on_bound(router.endpoint)
        server.notifier.ready(f"listening on {router.endpoint}")
        outcome = server.run(pending_stop())
    return outcome if isinstance(outcome, Finish) else execute_again(server, flags)


def _close(*logs: AppendLog) -> None:
    for log in logs:
        try:
            log.close()
        except OSError as error:
            logger.warning(f"{log.path.stem} not written: {because(error)}")


def _resumed_run(
    directory: RunDirectory, term: int, resume_point: ResumePoint
) -> tuple[RunSpec, Engine]:
    """Return the run as this term resumes it, and the engine of this process."""
    vocabulary, corpus = directory.corpus()
    state, losses = resume_point.checkpoint.state, resume_point.validation_losses
    engine = Engine(dimensions_of(directory.definition, len(vocabulary)))
    computed = engine.compute_fingerprint()
    spec = RunSpec(
        run_id=directory.run_id,
        term=term,
        session=secrets.randbits(53),
        definition=directory.definition,
        operation=directory.operation,
        corpus=corpus,
        vocabulary=vocabulary,
        state=state,
        fingerprint=computed.fingerprint,
        libraries=computed.libraries,
        banned=directory.facts.banned,
        seconds_before=resume_point.seconds,
        validation_losses=losses,
        unvalidated=unvalidated(directory, losses, state.step),
        started_workers=int(os.environ.get(STARTED_WORKERS, "0")),
    )
    return spec, engine


def _with_numerics(directory: RunDirectory, spec: RunSpec) -> RunDirectory:
    """Compare this machine's numerics with the run's, or note them where the run is new.

    Raises UserError where they differ. The journal says by now from which checkpoint this term
    began, so `resume_before` is no longer needed.
    """
    facts = directory.facts
    if facts.fingerprint not in ("", spec.fingerprint):
        raise UserError(
            f"this machine's arithmetic gives other bits than the run's: here"
            f" {as_words(spec.libraries)}; the run began with {as_words(facts.libraries)};"
            " serve the run on a machine with those versions",
            code=RUN_FAILED,
        )
    names = facts.libraries or dict(spec.libraries)
    return directory.with_facts(resume_before=None, fingerprint=spec.fingerprint, libraries=names)


def execute_again(server: ServerLoop, flags: Sequence[str]) -> Finish:
    """Replace this process by a new server, which resumes earlier; return only where that fails.

    A requested stop is handed on: the new server first sets aside the checkpoints that are wrong.
    """
    logger.info("this server executes itself again")
    own = ["--resume", str(server.directory.path), "--bind", server.router.endpoint]
    command = [*PROGRAM, "server", *own, *flags, *["--compute"] * server.compute]
    variables = {**os.environ, **server.notifier.variables}
    if (stop := server.machine.lifecycle.requested_stop) is not None:
        variables[PENDING_STOP] = json.dumps([stop.code, stop.reason])
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "drain", stream.flush)()
    try:
        os.execve(command[0], command, variables)  # noqa: S606 - this program itself
    except OSError as error:
        reason = f"the server could not execute itself again: {because(error)}; resume the run"
        return Finish(CRASHED, reason)


def pending_stop() -> Finish | None:
    """Return the stop that this process was asked for before it executed itself again."""
    text = os.environ.pop(PENDING_STOP, "")
    return Finish(*json.loads(text)) if text else None
