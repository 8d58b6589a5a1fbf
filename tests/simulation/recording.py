"""Recordings: each event that a machine was given, with its time, and a digest of the effects.

A machine is a function of its events. So a recording of a world that broke an invariant shows what
happened to each of its machines again, without the world, and tells whether a change of the code
has changed what a machine does about it.
"""

import dataclasses
import enum
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from manychar.protocol.effects import Effect
from manychar.protocol.events import Event
from manychar.protocol.relay import Relay
from manychar.protocol.server import ParameterServer
from manychar.protocol.worker import Worker
from tests.simulation.faults import Schedule
from tests.simulation.moves import MovingServer
from tests.simulation.relay_shell import MovingRelay
from tests.simulation.violation import Violation
from tests.simulation.world import World

MACHINES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (ParameterServer, MovingServer, Worker, Relay, MovingRelay)
}


@dataclasses.dataclass
class Tape:
    """One machine: what it was made of, and (time, event, outcome) of each event."""

    name: str
    kind: str
    arguments: Any
    events: list[tuple[float, Any, str]] = dataclasses.field(default_factory=list)


class Recorder:
    """Records the machines of a world."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def attach(self, name: str, machine: Any, **arguments: object) -> None:
        """Record a machine, which was made of these arguments, from now on."""
        tape = Tape(name, type(machine).__name__, to_plain(arguments))
        self.tapes.append(tape)
        handle = machine.handle

        def recorded(event: Event, now: float) -> list[Effect]:
            plain = to_plain(event)
            try:
                effects: list[Effect] = handle(event, now)
            except Exception as error:
                tape.events.append((now, plain, repr(error)))
                raise
            tape.events.append((now, plain, digest_of(effects)))
            return effects

        machine.handle = recorded

    def save(self, path: Path, violation: object) -> None:
        """Write the recording, and what it ended with."""
        tapes = [dataclasses.asdict(tape) for tape in self.tapes]
        path.write_bytes(msgpack.packb({"violation": str(violation), "tapes": tapes}))


def record(schedule: Schedule, path: Path) -> Violation | None:
    """Run a schedule and record it; return what it ended with, if it broke an invariant."""
    recorder = Recorder()
    violation = None
    try:
        World(schedule, attach=recorder.attach).run()
    except Violation as error:
        violation = error
    recorder.save(path, violation)
    return violation


def replay(path: Path, show: str = "") -> Iterator[str]:
    """Give the events of a recording to new machines; yield a line for each of them.

    Of the machine called `show` yield each event and its effects, too.
    """
    recording = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    for tape in recording["tapes"]:
        machine = MACHINES[tape["kind"]](**from_plain(tape["arguments"]))
        for number, (now, event, outcome) in enumerate(tape["events"], 1):
            effects: Any = []
            try:
                effects = machine.handle(from_plain(event), now)
                again = digest_of(effects)
            except Exception as error:
                again = repr(error)
            if tape["name"] == show:
                yield f"{now:9.4f}  {from_plain(event)}"
                yield from (f"    {effect}" for effect in effects)
            if again != outcome:
                yield f"{tape['name']}: event {number} has another outcome: {again}, not {outcome}"
                break
        else:
            yield f"{tape['name']}: {len(tape['events'])} events, the same outcomes"
    yield f"recorded: {recording['violation']}"


def digest_of(effects: list[Effect]) -> str:
    """Return what two equal lists of effects have in common, short."""
    return hashlib.sha256(msgpack.packb(to_plain(effects))).hexdigest()[:16]


def to_plain(value: Any) -> Any:  # noqa: PLR0911 - one return a kind of value
    """Return a value as msgpack can write it: dataclasses as their class and fields."""
    match value:
        case enum.Enum():
            return {"enum": [_path(type(value)), value.name]}
        case None | bool() | int() | float() | str() | bytes():
            return value
        case memoryview() | bytearray():
            return bytes(value)
        case np.generic():
            return value.item()
        case np.ndarray():
            return {"array": [value.dtype.str, list(value.shape), value.tobytes()]}
        case Mapping():
            return {"map": [[to_plain(key), to_plain(each)] for key, each in value.items()]}
        case set() | frozenset():
            return {"set": sorted(map(to_plain, value))}
        case list():
            return [to_plain(each) for each in value]
        case tuple() if not hasattr(value, "_fields"):
            return {"tuple": [to_plain(each) for each in value]}
    names = (
        [field.name for field in dataclasses.fields(value) if field.init]
        if dataclasses.is_dataclass(value)
        else value._fields
    )
    fields = {name: to_plain(getattr(value, name)) for name in names}
    return {"object": [_path(type(value)), fields]}


def from_plain(value: Any) -> Any:
    """Return the value that `to_plain` was given."""
    if isinstance(value, list):
        return [from_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return _READERS[kind](content)


def _array(content: Any) -> Any:
    dtype, shape, data = content
    return np.frombuffer(data, dtype).reshape(shape)


def _object(content: Any) -> Any:
    path, fields = content
    return _found(path)(**{name: from_plain(each) for name, each in fields.items()})


_READERS: dict[str, Callable[[Any], Any]] = {
    "enum": lambda content: _found(content[0])[content[1]],
    "array": _array,
    "map": lambda content: {from_plain(key): from_plain(each) for key, each in content},
    "set": lambda content: {from_plain(each) for each in content},
    "tuple": lambda content: tuple(from_plain(each) for each in content),
    "object": _object,
}


def _path(kind: type[Any]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _found(path: str) -> Any:
    module, name = path.split(":")
    assert module.startswith("manychar."), path
    return getattr(importlib.import_module(module), name)
