"""The command `worker`."""

import logging
from typing import Annotated, Any, NoReturn

import typer

from manychar.cli.options import Child, ConnectTimeout, Endpoint, KeyFile
from manychar.network.client_identity import find_key, make_hello
from manychar.network.connection_limit import need_files
from manychar.network.endpoints import check_endpoint
from manychar.numerics.option import Option, as_flags
from manychar.processes import log
from manychar.processes.errors import INTERRUPTED, STOPPED
from manychar.processes.log import logger
from manychar.processes.usable_cores import hint_at_cores
from manychar.protocol.effects import Finish
from manychar.protocol.messages import Role
from manychar.protocol.run_operation import MOST_WORKERS

NAME = Option("Name in the run.", without="<host>:<process id>")
PROCESSES = Option("Worker processes to run here.", least=1, most=MOST_WORKERS)


def worker(
    endpoint: Endpoint,
    name: Annotated[str | None, NAME] = None,
    processes: Annotated[int, PROCESSES] = 1,
    connect_timeout: ConnectTimeout = 600.0,
    key_file: KeyFile = None,
    child: Child = False,
    **_logging: Any,
) -> None:
    """Compute gradients for a server. Needs no text."""
    from manychar.fleet.worker_pool import WorkerPool
    from manychar.fleet.worker_process import work

    check_endpoint(endpoint, to_connect=True)
    need_files("a worker")
    key = find_key(key_file)
    identity = make_hello(Role.WORKER, name or (key.name if key else None))
    if processes > 1:
        flags = as_flags({"connect_timeout": connect_timeout, "child": True, "key": key_file})
        names = [f"{identity.name}-{i + 1}" for i in range(processes)]
        commands = {each: ["worker", endpoint, "--name", each, *flags] for each in names}
        hint_at_cores("--processes", processes)
        raise typer.Exit(WorkerPool(commands).run())
    if not child:
        logger.info(f"{identity.name} is a worker for {endpoint}; Ctrl-C ends it")
    log.configure(prefix=f"{identity.name}: ")
    end_with(work(endpoint, identity, key=key, connect_timeout=connect_timeout))


def end_with(finish: Finish) -> NoReturn:
    """Log how a worker or relay ended, and exit with its code."""
    in_order = finish.code in (0, STOPPED, INTERRUPTED)
    logger.log(logging.INFO if in_order else logging.ERROR, finish.reason)
    raise typer.Exit(finish.code)
