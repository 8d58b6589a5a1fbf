"""The command `server`, and the hidden one of its validation."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from manychar.cli.console import write
from manychar.cli.options import Child, Insecure, Run, TextFiles
from manychar.cli.run_setup import exit_with, numerics_of, pin_run, resume_line, run_of
from manychar.fleet.launch_options import Reporting
from manychar.network.client_identity import KEYS_VARIABLE
from manychar.network.endpoints import require_safe, worker_command
from manychar.numerics.option import Option, as_flags, options_of
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.processes.numerics_pinning import pin
from manychar.processes.queued_stream import queued
from manychar.processes.subcommand import as_pasted, program
from manychar.protocol.effects import Finish

KEYS = "Admit only clients with a key in this directory."
RESUME_VARIABLE = "MANYCHAR_RESUME_COMMAND"  # of an engine whose server is not started by hand
COMPUTE = Option(
    "Compute a share of the shards in this process, too.", names=("--compute/--no-compute",)
)


def server(
    text: TextFiles = None,
    bind: Annotated[str, Option("Endpoint to listen on.")] = "tcp://127.0.0.1:5577",
    keys: Annotated[Path | None, Option(KEYS, variable=KEYS_VARIABLE)] = None,
    insecure: Insecure = False,
    compute: Annotated[bool, COMPUTE] = False,
    child: Child = False,
    **flags: Any,
) -> None:
    """Serve a run to workers that are started separately, here or on other machines."""
    from manychar.network.router import Router

    path = pin_run(flags, by_parent=child)
    command = as_pasted(*sys.argv[1:])
    require_safe(bind, keys=keys is not None, insecure=insecure, command=command)
    if "resume" not in flags:
        Router(bind, None, keys).close()  # before a run directory is made for nothing
    directory = run_of(path, text, flags, by_parent=child)
    from manychar.fleet.server_loop import Screen
    from manychar.fleet.server_process import serve
    from manychar.observability.progress import ProgressDisplay
    from manychar.storage.run_directory import removed_if_refused

    def bound(endpoint: str) -> None:
        if child:
            write_endpoint(endpoint)
        else:
            joins = worker_command(endpoint, keys=keys is not None)
            logger.info(f"listening; a worker joins with: {joins}")

    access = ["--insecure"] if insecure else [] if keys is None else ["--keys", str(keys)]
    if child:
        try:
            screen, flags_again = Screen(bound, by_parent=True), [*access, "--child"]
            finish = serve(directory, bind, screen, keys, flags=flags_again, compute=compute)
        except UserError as error:
            finish = Finish(error.code, str(error))
        write(json.dumps(dataclasses.asdict(finish)) + "\n")
        raise typer.Exit(finish.code)
    reporting = as_flags({name: flags.get(name) for name in options_of(Reporting, role="server")})
    own = f"{program()} {as_pasted('server', '--bind', bind, *access, *reporting)}"
    again = os.environ.get(RESUME_VARIABLE, own) + " --compute" * compute
    resume_line(directory, again)
    display = ProgressDisplay(directory, flags.get("log_every"))
    with removed_if_refused(directory), queued("stdout"), display:
        screen = Screen(bound, display.status, display.weights)
        flags_again = [*access, *as_flags({"log_every": flags.get("log_every")})]
        finish = serve(directory, bind, screen, keys, flags=flags_again, compute=compute)
    exit_with(finish, directory, again=again)


def write_endpoint(endpoint: str) -> None:
    """Write where a child process listens, for its parent."""
    write(json.dumps({"endpoint": endpoint}) + "\n")


def validate(run_dir: Run) -> None:
    """Compute the validation losses of the checkpoints on standard input, for `server`."""
    pin(numerics_of(run_dir))
    from manychar.fleet.validation_process import validate

    validate(run_dir)
