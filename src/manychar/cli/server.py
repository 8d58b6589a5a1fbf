"""The command `server`."""

import json
import logging
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manychar.cli.console import nothing
from manychar.cli.options import Bind, Child, Insecure, Keys, Run, TextFiles
from manychar.cli.train import display, exit_with, numerics_of, run_of
from manychar.network.endpoints import check_endpoint, require_safe
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

if TYPE_CHECKING:
    from manychar.observability.progress import ProgressDisplay

logger = logging.getLogger(__name__)

DEFAULT_BIND = "tcp://127.0.0.1:5577"


def server(
    text: TextFiles = None,
    bind: Bind = DEFAULT_BIND,
    keys: Keys = None,
    insecure: Insecure = False,
    child: Child = False,
    **flags: Any,
) -> None:
    """Serve a run to workers that are started separately, here or on other machines."""
    from manychar.network.router import check_free

    check_endpoint(bind)
    command = shlex.join(sys.argv[1:])
    require_safe(bind, keys=keys is not None, insecure=insecure, command=command)
    if insecure and keys is not None:
        raise UserError("--keys and --insecure: give one of them")
    if insecure:
        logger.info(f"--insecure: anyone who can reach {bind} can join this run and read its text")
    if "resume" not in flags:
        check_free(bind, keys)  # before a run directory is made for nothing
    directory = run_of(text, flags)
    from manychar.fleet.server_process import serve

    access = ["--insecure"] if insecure else [] if keys is None else ["--keys", str(keys)]
    if child:
        finish = serve(directory, bind, _child_screen(), keys, flags=[*access, "--child"])
        raise typer.Exit(finish.code)
    with display(directory) as screen:
        finish = serve(directory, bind, _screen(screen, keys), keys, flags=access)
    again = ["server", *(["--bind", bind] if bind != DEFAULT_BIND else []), *access]
    exit_with(finish, directory, again=shlex.join(again))


def validate(run_dir: Run) -> None:
    """Compute the validation losses of the checkpoints on standard input, for `server`."""
    pin(numerics_of(run_dir))
    from manychar.fleet.validation_process import validate

    validate(run_dir)


def _screen(display: "ProgressDisplay", keys: Path | None) -> Any:
    from manychar.fleet.server_loop import Screen

    def bound(endpoint: str) -> None:
        key = "" if keys is None else " --key FILE"
        logger.info(f"listening; a worker joins with: manychar worker {_reachable(endpoint)}{key}")

    return Screen(status=display.status, weights=display.weights, bound=bound)


def _child_screen() -> Any:
    """Return the screen of a supervised server: it prints the endpoint for its parent."""
    from manychar.fleet.server_loop import Screen

    def bound(endpoint: str) -> None:
        print(json.dumps({"endpoint": endpoint}), flush=True)

    return Screen(status=nothing, weights=nothing, bound=bound)


def _reachable(endpoint: str) -> str:
    """Return an endpoint as another machine would write it."""
    for anywhere in ("tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:"):
        if endpoint.startswith(anywhere):
            return f"tcp://{socket.gethostname()}:{endpoint.removeprefix(anywhere)}"
    return endpoint
