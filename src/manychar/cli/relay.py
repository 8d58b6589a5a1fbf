"""The command `relay`."""

import functools
import sys
from pathlib import Path
from typing import Annotated, Any

from manychar.cli.options import Child, ConnectTimeout, Endpoint, Insecure, KeyFile
from manychar.cli.server import KEYS, write_endpoint
from manychar.cli.worker import NAME, end_with
from manychar.network.client_identity import KEYS_VARIABLE, find_key, make_hello
from manychar.network.endpoints import check_endpoint, require_safe
from manychar.network.keys import read_clients, read_server_key
from manychar.numerics.option import Option
from manychar.processes import log
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.processes.subcommand import as_pasted
from manychar.protocol.messages import Role


def relay(
    endpoint: Endpoint,
    bind: Annotated[str, Option("Endpoint to listen on.")] = "tcp://127.0.0.1:5578",
    name: Annotated[str | None, NAME] = None,
    connect_timeout: ConnectTimeout = 600.0,
    key_file: KeyFile = None,
    keys: Annotated[Path | None, Option(KEYS, variable=KEYS_VARIABLE)] = None,
    insecure: Insecure = False,
    child: Child = False,
    **_logging: Any,
) -> None:
    """Stand for the workers of a machine, rack or job: to the server they are one worker."""
    from manychar.fleet.relay_process import relay
    from manychar.protocol.relay import OWN_ENDPOINT

    check_endpoint(endpoint, to_connect=True)
    if endpoint == bind:
        raise UserError(OWN_ENDPOINT.format(bind))
    command = as_pasted(*sys.argv[1:])
    has_keys, name_of_keys = keys is not None, "RACK_KEYS"  # KEYS may hold the key for the server
    require_safe(bind, keys=has_keys, insecure=insecure, command=command, name=name_of_keys)
    if keys is not None:  # before anything is announced
        read_server_key(keys)
        read_clients(keys)
    key = find_key(key_file)
    identity = make_hello(Role.WORKER, name or (key.name if key else None))
    if not child:
        logger.info(f"{identity.name} relays {endpoint} to {bind}; Ctrl-C ends it")
    log.configure(prefix=f"{identity.name}: ")
    on_bound = write_endpoint if child else None
    run = functools.partial(relay, connect_timeout=connect_timeout, key=key, keys=keys)
    end_with(run(endpoint, bind, identity, on_bound=on_bound))
