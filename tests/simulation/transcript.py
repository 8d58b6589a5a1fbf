"""One line for each message, for a person who follows a schedule."""

import dataclasses

from manychar.protocol.messages import Message
from manychar.protocol.unit_payload import Payload


def sent(who: str, message: Message) -> str:
    """Return the line of a message that is sent."""
    return f"{who}: {brief(message)}"


def brief(message: Message) -> str:
    """Return one line for a transcript."""
    fields = {
        field.name: getattr(message, field.name)
        for field in dataclasses.fields(message)
        if field.name not in ("run", "dimensions", "session", "machine", "libraries")
    }
    shown = {
        name: value
        for name, value in fields.items()
        if not isinstance(value, bytes | bytearray | memoryview | Payload)
    }
    return f"{type(message).__name__}({', '.join(f'{k}={v}' for k, v in shown.items())})"
