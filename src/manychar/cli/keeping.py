"""The commands that keep the keys: create, add, revoke, list."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from manychar.cli.console import write
from manychar.protocol.messages import KeyRole

logger = logging.getLogger(__name__)


app = typer.Typer(
    no_args_is_help=True,
    help="Keep the keys of a server that other machines can reach.",
    epilog="Example: manychar keys create KEYS",
)
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder of keys.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The client's name in the run.")]


@app.command(epilog="Example: manychar keys create KEYS")
def create(directory: Directory) -> None:
    """Make the server's pair of keys, and a first worker's: DIR/worker.key."""
    from manychar.network.keys import create as make

    _handed_out(make(directory), KeyRole.WORKER)
    logger.info(f"the server: manychar server TEXT --bind tcp://… --keys {directory}")


@app.command(epilog="Example: manychar keys add KEYS olga --role observer")
def add(
    directory: Directory,
    name: Name,
    role: Annotated[
        KeyRole,
        typer.Option(help="A worker computes, an observer looks, an operator may also stop."),
    ] = KeyRole.WORKER,
) -> None:
    """Make a key for another client: DIR/NAME.key. A running server lets it in at once."""
    from manychar.network.keys import add as let_in

    _handed_out(let_in(directory, name, role), role)


@app.command(epilog="Example: manychar keys revoke KEYS olga")
def revoke(directory: Directory, name: Name) -> None:
    """Let a client come no more; a running server drops it at its next message."""
    from manychar.network.keys import revoke as keep_out

    keep_out(directory, name)
    logger.info(f"{name} may not come any more")


@app.command("list", epilog="Example: manychar keys list KEYS --json")
def show(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
) -> None:
    """List who may come, and who may not any more."""
    from manychar.network.keys import read_clients

    clients = read_clients(directory)
    if as_json:
        write(json.dumps([vars(client) for client in clients], indent=2) + "\n")
        return
    for client in clients:
        state = "revoked" if client.revoked else client.role.value
        write(f"{client.name:<48}  {state:<8}  {client.public}\n")


def _handed_out(path: Path, role: KeyRole) -> None:
    command = {KeyRole.WORKER: "worker", KeyRole.OBSERVER: "sample", KeyRole.OPERATOR: "stop"}[role]
    logger.info(
        f"{path}: move it to its machine, and: manychar {command} tcp://… --key {path.name}"
    )
