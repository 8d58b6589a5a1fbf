"""The command `unban`."""

from pathlib import Path
from typing import Annotated

from manychar.cli.options import ConnectTimeout, Key, Watched, argument
from manychar.network.endpoints import is_endpoint
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.protocol.field_types import NAME, NAME_RULE
from manychar.storage.server_address import is_served


def unban(
    source: Watched,
    name: Annotated[str, argument("NAME", "The banned worker's name, or its key's.")],
    connect_timeout: ConnectTimeout = 10.0,
    key: Key = None,
) -> None:
    """Lift the ban of a worker that computed wrongly, for example after a repair."""
    if not NAME.fullmatch(name):
        raise UserError(f"NAME {name}: a name is {NAME_RULE}")
    if is_endpoint(source) or is_served(Path(source)):
        from manychar.observability.observer_client import send_unban

        answer = send_unban(source, name, key, connect_timeout=connect_timeout)
        result, lifted = answer.text, answer.lifted
    else:
        from manychar.protocol.admission import lift_ban
        from manychar.storage.run_directory import locked, open_run

        path = Path(source)
        with locked(open_run(path)):
            directory = open_run(path)
            banned, result = lift_ban(directory.facts.banned, name)
            if lifted := banned != directory.facts.banned:
                directory.with_facts(banned=banned).write_config()
    if not lifted:
        raise UserError(f"{source}: {result}")
    logger.info(result)
