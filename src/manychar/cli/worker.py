"""The command `worker`."""

import logging
from typing import Any

import typer

from manychar.cli.options import Child, ConnectTimeout, Endpoint, Key, Processes, WorkerName
from manychar.network.endpoints import check_endpoint
from manychar.processes import log
from manychar.processes.errors import INTERRUPTED, STOPPED

logger = logging.getLogger(__name__)


def worker(
    endpoint: Endpoint,
    name: WorkerName = None,
    processes: Processes = 1,
    connect_timeout: ConnectTimeout = 600.0,
    key: Key = None,
    child: Child = False,
    **_logging: Any,
) -> None:
    """Compute gradients for a server. Needs no text."""
    from manychar.fleet.worker_process import work
    from manychar.network.client_identity import find_key, hello
    from manychar.protocol.messages import Role

    check_endpoint(endpoint)
    mine = find_key(key)
    me = hello(Role.WORKER, name or (mine.name if mine else None))
    if processes > 1:
        from manychar.fleet.worker_pool import work_together

        raise typer.Exit(
            work_together(
                endpoint,
                me.name,
                processes=processes,
                connect_timeout=connect_timeout,
                key_file=key,
            )
        )
    if not child:
        logger.info(f"{me.name} works for {endpoint}; Ctrl-C ends it")
    log.configure(prefix=f"{me.name}: ")
    finish = work(endpoint, me, connect_timeout=connect_timeout, key=mine)
    in_order = finish.code in (0, STOPPED, INTERRUPTED)
    (logger.info if in_order else logger.error)(finish.reason or "the run has ended")
    raise typer.Exit(finish.code)
