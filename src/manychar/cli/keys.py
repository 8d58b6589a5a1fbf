"""The commands `keys create`, `keys add`, `keys revoke` and `keys list`."""

import json
from pathlib import Path
from typing import Annotated, Literal

from manychar.cli.console import write
from manychar.cli.options import AsJson, argument
from manychar.network import keys
from manychar.numerics.option import Option
from manychar.processes.log import logger
from manychar.processes.subcommand import as_pasted, program
from manychar.protocol.messages import KeyRole

KeyDirectory = Annotated[Path, argument("DIR", "The server's directory of keys.", Path)]
Name = Annotated[str, argument("NAME", "The client's name in the run.")]
ROLE = Option("An observer watches; an operator may also stop the run and lift bans.")
USES = {
    KeyRole.WORKER: ("worker", "; relay takes it, too"),
    KeyRole.OBSERVER: ("status", "; sample, dashboard and follow take it, too"),
    KeyRole.OPERATOR: ("status", "; stop and unban take it, too"),
}
Role = Annotated[Literal["worker", "observer", "operator"], ROLE]


def create(directory: KeyDirectory) -> None:
    """Make the server's pair of keys, and a first worker's: DIR/worker.key.

    A server.key without a list of clients is kept, and the keys beside it are listed again.
    """
    is_kept = (directory / keys.SERVER_NAME).exists()
    first = keys.create(directory)
    if is_kept:
        names = ", ".join(client.name for client in keys.read_clients(directory))
        logger.info(f"{directory}: {keys.SERVER_NAME} is kept; a new list of clients: {names}")
    _explain(first, KeyRole.WORKER)
    command = f"{program()} server TEXT --bind tcp://… --keys {as_pasted(directory)}"
    logger.info(f"the server: {command}")


def add(directory: KeyDirectory, name: Name, role: Role = "worker") -> None:
    """Make a key for another client: DIR/NAME.key. A running server admits it at once."""
    _explain(keys.add(directory, name, KeyRole(role)), KeyRole(role))


def revoke(directory: KeyDirectory, name: Name) -> None:
    """Revoke a client's key, and delete DIR/NAME.key; a running server disconnects it."""
    keys.revoke(directory, name)
    logger.info(f"{name}: its key is revoked")


def show(directory: KeyDirectory, as_json: AsJson = False) -> None:
    """List the clients with their roles and public keys, of each name the newest one."""
    clients = {client.name: client for client in keys.read_clients(directory)}.values()
    if as_json:
        write(json.dumps([vars(client) for client in clients], indent=2) + "\n")
        return
    for client in clients:
        state = "revoked" if client.revoked else client.role.value
        write(f"{client.name:<48}  {state:<8}  {client.public}\n")


def _explain(path: Path, role: KeyRole) -> None:
    command, more = USES[role]
    use = f"manychar {command} tcp://… --key {path.name}{more}"
    logger.info(f"{path}: move it to its machine; there: {use}")
