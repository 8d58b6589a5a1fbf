"""The commands that train: train, server, worker, stop."""

import json
import logging
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manychar.cli.console import nothing, program
from manychar.cli.options import (
    DEFINITION,
    LOGGING,
    OPERATION,
    SINKS,
    WORKERS,
    Child,
    Key,
    Patience,
    Text,
    with_flags,
)
from manychar.cli.run_setup import display, take_run
from manychar.network.client_identity import KEYS_VARIABLE
from manychar.network.endpoints import check_endpoint, require_safe
from manychar.observability.exporters import check as check_sinks
from manychar.processes import log
from manychar.processes.errors import INTERRUPTED, STOPPED, UserError
from manychar.processes.numerics_pinning import pin

if TYPE_CHECKING:
    from manychar.observability.progress import Display
    from manychar.protocol.effects import Finish
    from manychar.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)


DEFAULT_BIND = "tcp://127.0.0.1:5577"


@with_flags(DEFINITION, OPERATION, WORKERS, SINKS, LOGGING)
def train(text: Text = None, **flags: Any) -> None:
    """Train: a server and its workers on this machine, with one command."""
    wanted = {name: flags[name] for name in SINKS if name in flags}
    check_sinks(**wanted)
    directory = take_run(text, flags)
    operation = directory.operation
    _end_if_it_is_through(directory)
    from manychar.fleet.local_fleet import LocalFleet
    from manychar.observability.exporters import exporters

    if operation.workers > directory.definition.shards:
        logger.info(
            f"{operation.workers} workers for {directory.definition.shards} shards: the rest stand"
            f" by; --shards {operation.workers} would give each of them work"
        )
    with display(directory) as screen, exporters(screen.dimensions, **wanted) as beside:
        finish = LocalFleet(directory, screen, exporters=beside).run()
    _finish(finish, directory, again="train")


@with_flags(DEFINITION, OPERATION, LOGGING)
def server(
    text: Text = None,
    bind: Annotated[str, typer.Option("--bind", help="Where to listen.")] = DEFAULT_BIND,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys", envvar=KEYS_VARIABLE, help="Let in only whose key is in this directory."
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen where strangers can reach it, without keys.")
    ] = False,
    child: Child = False,
    **flags: Any,
) -> None:
    """Serve a run to workers that are started by hand, here or on other machines."""
    from manychar.network.router import check_free

    check_endpoint(bind)
    command = shlex.join(sys.argv[1:])
    require_safe(bind, keys=keys is not None, insecure=insecure, command=command)
    if insecure and keys is not None:
        raise UserError("--keys and --insecure: give one of them")
    if insecure:
        logger.info(f"--insecure: whoever can reach {bind} can join this run, and see its text")
    if "resume" not in flags:
        check_free(bind, keys)  # before a run directory is made for nothing
    directory = take_run(text, flags)
    from manychar.fleet.server_process import serve

    if child:
        finish = serve(directory, bind, _child_screen())
        raise typer.Exit(finish.code)
    with display(directory) as screen:
        finish = serve(directory, bind, _screen(screen, keys), keys)
    again = ["server", *(["--bind", bind] if bind != DEFAULT_BIND else [])]
    again += ["--insecure"] if insecure else [] if keys is None else ["--keys", str(keys)]
    _finish(finish, directory, again=shlex.join(again))


@with_flags(LOGGING)
def worker(
    endpoint: Annotated[str, typer.Argument(help="Where the server listens: tcp://HOST:PORT.")],
    name: Annotated[
        str | None, typer.Option(help="Its name in the run.", show_default="host:process")
    ] = None,
    processes: Annotated[int, typer.Option(help="Workers to run here.", min=1, max=1024)] = 1,
    patience: Annotated[
        float, typer.Option(help="Seconds to wait for a server before giving up.", min=0.0)
    ] = 600.0,
    key: Key = None,
    child: Child = False,
    **_logging: Any,
) -> None:
    """Work for a server: compute the gradients of whatever shards it leases. Needs no text."""
    from manychar.fleet.worker_process import work
    from manychar.network.client_identity import find_key, hello
    from manychar.protocol.messages import Role

    check_endpoint(endpoint)
    mine = find_key(key)
    me = hello(Role.WORKER, name or (mine.name if mine else None))
    if processes > 1:
        from manychar.fleet.worker_pool import work_together

        raise typer.Exit(
            work_together(endpoint, me.name, processes=processes, patience=patience, key_file=key)
        )
    if not child:
        logger.info(f"{me.name} works for {endpoint}; Ctrl-C ends it")
    log.configure(prefix=f"{me.name}: ")
    finish = work(
        endpoint,
        me,
        patience=patience,
        key=mine,
    )
    in_order = finish.code in (0, STOPPED, INTERRUPTED)
    (logger.info if in_order else logger.error)(finish.reason or "the run has ended")
    raise typer.Exit(finish.code)


def stop(
    endpoint: Annotated[str, typer.Argument(help="Where the server listens.")],
    patience: Patience = 10.0,
    key: Key = None,
) -> None:
    """Have a run end in good order, from anywhere: it ends its step and writes a checkpoint."""
    pin("portable")
    from manychar.network.client_identity import find_key
    from manychar.observability.observer_client import stop as ask_to_stop

    logger.info(ask_to_stop(endpoint, find_key(key), patience=patience))


def _end_if_it_is_through(directory: "RunDirectory") -> None:
    """Say so, and exit, where a resumed run has all its steps already, or got no better."""
    from manychar.storage.validation_log import is_over, read_validation_losses

    steps = directory.operation.steps
    try:
        checkpoint, damaged = directory.newest_checkpoint()
    except UserError:
        return  # the server says what is wrong
    newest = checkpoint.state.step
    if damaged:
        return
    unvalidated = directory.definition.validation > 0 and newest not in read_validation_losses(
        directory
    )
    if 0 < steps <= newest and not unvalidated:
        logger.info(f"already at step {newest:,} of {steps:,}; --steps N goes on")
        raise typer.Exit
    if not unvalidated and is_over(directory, newest):
        logger.info(f"over at step {newest:,}: it got no better; --stop-when-no-better 0 goes on")
        raise typer.Exit


def _screen(display: "Display", keys: Path | None) -> Any:
    from manychar.fleet.server_process import Screen

    def bound(endpoint: str) -> None:
        key = "" if keys is None else " --key FILE"
        logger.info(f"listening; a worker joins with: manychar worker {_reachable(endpoint)}{key}")

    return Screen(report=display.report, weights=display.weights, bound=bound)


def _reachable(endpoint: str) -> str:
    """Return an endpoint as another machine would write it."""
    for anywhere in ("tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:"):
        if endpoint.startswith(anywhere):
            return f"tcp://{socket.gethostname()}:{endpoint.removeprefix(anywhere)}"
    return endpoint


def _child_screen() -> Any:
    """Return a server's screen where the parent watches: what it says, and where it listens."""
    from manychar.fleet.server_process import Screen

    def bound(endpoint: str) -> None:
        print(json.dumps({"endpoint": endpoint}), flush=True)

    return Screen(report=nothing, weights=nothing, bound=bound)


def _finish(finish: "Finish", directory: "RunDirectory", *, again: str) -> None:
    """Say how it ended, how to go on and how to sample; exit with its code."""
    steps, path = directory.operation.steps, shlex.quote(str(directory.path))
    if finish.reason:
        logger.error(f"manychar: {finish.reason}") if finish.code else logger.info(finish.reason)
    if finish.code or steps == 0:
        logger.info(f"go on: {program()} {again} --resume {path}")
    from manychar.storage.validation_log import BEST_NAME

    best = directory.checkpoints / BEST_NAME
    logger.info(f"sample from it: {program()} sample {path}")
    if best.exists():
        logger.info(f"or from the best: {program()} sample {shlex.quote(str(best))}")
    raise typer.Exit(finish.code)
