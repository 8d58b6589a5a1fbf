"""How a worker or an observer introduces itself: its name, and its key where there are keys."""

import os
import re
import secrets
import socket
from pathlib import Path

from manychar.network.keys import ClientKey, client_key_from_text, read_client_key
from manychar.processes.errors import UserError
from manychar.protocol.field_types import NAME, NAME_RULE
from manychar.protocol.messages import HOST_LENGTH, WIRE_VERSION, Hello, Role, one_line

KEY_VARIABLE, KEY_FILE_VARIABLE = "MANYCHAR_KEY", "MANYCHAR_KEY_FILE"
KEYS_VARIABLE = "MANYCHAR_KEYS"
WITHOUT_KEYS = dict.fromkeys((KEY_VARIABLE, KEY_FILE_VARIABLE, KEYS_VARIABLE), "")
"""The environment of a fleet's children: whatever keys there are, they are for other servers."""


def find_key(path: Path | None) -> ClientKey | None:
    """Return the key in a file, or in the environment, or None where there is neither."""
    if path is not None:
        if str(path).lstrip().startswith("{"):  # not to be repeated
            raise UserError(
                f"--key takes the name of a file: give a key's content in ${KEY_VARIABLE};"
                " what stood on a command line others could read: better make a new key"
            )
        return read_client_key(path)
    if text := os.environ.get(KEY_VARIABLE):
        return client_key_from_text(os.fsencode(text), f"${KEY_VARIABLE}")
    return None


def make_hello(role: Role, name: str | None = None) -> Hello:
    """Return the Hello of this process; its name is host:process unless given."""
    name = name or f"{re.sub('[^A-Za-z0-9._-]', '-', socket.gethostname())[:48]}:{os.getpid()}"
    if not NAME.fullmatch(name):
        raise UserError(f"--name is {name!r}; allowed: {NAME_RULE}")
    machine = {"host": one_line(socket.gethostname())[:HOST_LENGTH]}
    instance = secrets.token_hex(8)
    return Hello(wire=WIRE_VERSION, role=role, name=name, instance=instance, machine=machine)
