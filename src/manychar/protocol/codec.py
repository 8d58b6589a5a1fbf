"""Message <-> frames. Every limit of the wire stands here, and nothing is believed unchecked.

The first frame is a header: a msgpack map of at most 4 KiB with the message's type and its small
fields, each of a stated kind and range. Tensors follow as raw frames; their number and exact
lengths follow from the message's type and the run's dimensions, never from what the header claims.
"""

import dataclasses
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from manychar.protocol import messages
from manychar.protocol.messages import Dimensions, Frame, Level, Message, Unit, WorkerStats

HEADER_BYTES = 4096
MAX_FRAMES = 4
MAX_TEXT = messages.TEXT_LENGTH
MAX_NAME = 64
MAX_NAMES = 32
MAX_MAP = 24
MAX_ROSTER = messages.ROSTER_LENGTH
MAX_INTEGER = 2**53
MAX_VOCABULARY_BYTES = 4 * 0x110000
UNIT = struct.Struct("<4q")

Check = Callable[[Any], Any]


class WireError(ValueError):
    """Bytes that are no message. The text says what is wrong with them; the sender is to blame."""


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise WireError("not a whole number in range")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise WireError("not a finite number")
    return float(value)


def _any_number(value: Any) -> float:
    """Check a loss: it may be infinite or no number, and the server then says whose it was."""
    if type(value) is not float:
        raise WireError("not a number")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise WireError("not true or false")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT or not value.isprintable():
        raise WireError("not a short printable text")
    return value


_PLAIN = re.compile(rf"[A-Za-z0-9._:-]{{1,{MAX_NAME}}}", re.ASCII)


def _name(value: Any) -> str:
    if type(value) is not str or not _PLAIN.fullmatch(value):
        raise WireError(f"not a name: 1 to {MAX_NAME} of A-Z a-z 0-9 . _ : -")
    return value


def _level(value: Any) -> Level:
    if type(value) is not str or value not in tuple(Level):
        raise WireError("not a level")
    return Level(value)


def _digest(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != messages.DIGEST_BYTES:
        raise WireError(f"not a digest of {messages.DIGEST_BYTES} bytes")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if type(value) is not list or len(value) > MAX_NAMES:
        raise WireError(f"not a list of at most {MAX_NAMES} names")
    return tuple(map(_name, value))


def _perhaps(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _attendances(value: Any) -> tuple[WorkerStats, ...]:
    if type(value) is not list or len(value) > MAX_ROSTER:
        raise WireError(f"not a list of at most {MAX_ROSTER} workers")
    return tuple(map(_attendance, value))


def _attendance(value: Any) -> WorkerStats:
    if type(value) is not list or len(value) != len(_ATTENDANCE):
        raise WireError("not what is known of a worker")
    return WorkerStats(*(check(item) for check, item in zip(_ATTENDANCE, value, strict=True)))


def _map_of(check: Check) -> Check:
    def checked(value: Any) -> dict[str, Any]:
        if type(value) is not dict or len(value) > MAX_MAP:
            raise WireError(f"not a map of at most {MAX_MAP} entries")
        return {_text(key): check(item) for key, item in value.items()}

    return checked


def _dimensions(value: Any) -> Dimensions:
    fields = _checked(value, _DIMENSIONS)
    if (
        fields["dtype"] not in ("float32", "float64")
        or min(
            fields[name]
            for name in ("vocabulary_size", "hidden", "seq_length", "streams", "shards")
        )
        < 1
    ):
        raise WireError("not the dimensions of a run")
    return Dimensions(**fields)


_ATTENDANCE: tuple[Check, ...] = (_name, _text, _name, *(_integer,) * 3, *(_number,) * 4)

_DIMENSIONS: dict[str, Check] = {
    "vocabulary_size": _integer,
    "hidden": _integer,
    "seq_length": _integer,
    "streams": _integer,
    "shards": _integer,
    "delay": _integer,
    "dtype": _name,
}

Length = Callable[[Dimensions, Mapping[str, Any]], int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one type of message lies on the wire: its header's fields, and its frames' lengths."""

    type: type[Any]
    fields: dict[str, Check]
    frames: dict[str, Length] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the header calls it."""
        return self.type.__name__


_ENVELOPE: dict[str, Check] = {"run": _name, "term": _integer}
_LEASED = {**_ENVELOPE, "lease": _integer, "shard": _integer, "step": _integer, "version": _integer}


def _units(_: Dimensions, fields: Mapping[str, Any]) -> int:
    return UNIT.size * int(fields["unit_count"])


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            messages.Hello,
            {
                "wire": _integer,
                "role": _name,
                "name": _name,
                "instance": _name,
                "machine": _map_of(_text),
            },
        ),
        Layout(
            messages.Welcome,
            {
                **_ENVELOPE,
                "steps": _integer,
                "dimensions": _dimensions,
                "numerics": _name,
                "seed": _integer,
                "silence": _number,
                "vocabulary_bytes": _integer,
            },
            {"vocabulary": lambda _, fields: int(fields["vocabulary_bytes"])},
        ),
        Layout(
            messages.Ready,
            {**_ENVELOPE, "fingerprint": _name, "libraries": _map_of(_text), "slowest": _number},
        ),
        Layout(messages.Refused, {"reason": _text}),
        Layout(messages.Reset, _ENVELOPE),
        Layout(
            messages.Grant,
            {**_LEASED, "fresh": _flag},
            {
                "weights": lambda size, _: size.parameters_bytes,
                "hidden": lambda size, _: size.hidden_bytes,
                "ids": lambda size, _: size.ids_bytes,
            },
        ),
        Layout(
            messages.Weights,
            {**_ENVELOPE, "version": _integer, "unit_count": _integer},
            {
                "weights": lambda size, _: size.parameters_bytes,
                "units": _units,
                "ids": lambda size, fields: size.ids_bytes * int(fields["unit_count"]),
            },
        ),
        Layout(messages.Revoke, {**_ENVELOPE, "lease": _integer}),
        Layout(
            messages.Gradient,
            {**_LEASED, "hidden_digest": _digest, "loss": _any_number},
            {
                "gradient": lambda size, _: size.parameters_bytes,
                "hidden": lambda size, _: size.hidden_bytes,
            },
        ),
        Layout(
            messages.Heartbeat,
            {**_ENVELOPE, "slowest": _number, "computing": _number, "unit_count": _integer},
            {"units": _units},
        ),
        Layout(messages.Alive, _ENVELOPE),
        Layout(messages.Stop, _ENVELOPE),
        Layout(messages.Goodbye, {**_ENVELOPE, "reason": _text}),
        Layout(
            messages.Report,
            {
                **_ENVELOPE,
                "step": _integer,
                "steps": _integer,
                "loss": _any_number,
                "smooth_loss": _any_number,
                "characters": _integer,
                "seconds": _number,
                "workers": _names,
                "standing_by": _integer,
                "counts": _map_of(_integer),
                "checkpoint": _integer,
                "checkpoint_age": _number,
                "validated": _perhaps(_integer),
                "validation": _perhaps(_any_number),
                "best": _perhaps(_integer),
            },
        ),
        Layout(
            messages.Roster,
            {
                **_ENVELOPE,
                "first": _integer,
                "total": _integer,
                "waiting": _text,
                "workers": _attendances,
            },
        ),
        Layout(messages.Notice, {**_ENVELOPE, "level": _level, "text": _text}),
        Layout(messages.Done, {**_ENVELOPE, "code": _integer, "reason": _text}),
    )
}


def encode(message: Message) -> list[Frame]:
    """Return the frames of a message. ValueError if it breaks a limit of ours: a fault of ours."""
    layout = LAYOUTS[type(message).__name__]
    values = dict(vars(message))
    if "dimensions" in values:
        values["dimensions"] = dataclasses.asdict(values["dimensions"])
    if "unit_count" in layout.fields:
        values["unit_count"] = len(values["units"])
        values["units"] = b"".join(UNIT.pack(*unit) for unit in values["units"])
    if "vocabulary_bytes" in layout.fields:
        values["vocabulary_bytes"] = len(values["vocabulary"])
    if layout.type is messages.Weights:
        values["ids"] = b"".join(values["ids"])
    header = {"type": layout.name, **{name: values[name] for name in layout.fields}}
    packed = msgpack.packb(header)
    if len(packed) > HEADER_BYTES:
        raise ValueError(f"a {layout.name} header of {len(packed)} bytes")
    return [packed, *(values[name] for name in layout.frames)]


def decode(frames: Sequence[Frame], dimensions: Dimensions | None) -> Message:
    """Return the message in the frames, or raise WireError.

    `dimensions` are those of the run this side is in; without them (a peer that was not welcomed
    yet) a message with tensors is an error.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise WireError(f"{len(frames)} frames")
    header = _header(frames[0])
    layout = LAYOUTS.get(header.pop("type", None))
    if layout is None:
        raise WireError("no type of message that is known here")
    try:
        fields = _checked(header, layout.fields)
    except WireError as error:
        raise WireError(f"{layout.name}: {error}") from None
    _check_frames(layout, fields, frames[1:], dimensions or fields.get("dimensions"))
    return _build(layout, fields, frames[1:])


def _header(frame: Frame) -> dict[Any, Any]:
    if len(frame) > HEADER_BYTES:
        raise WireError(f"a header of {len(frame)} bytes")
    try:
        header = msgpack.unpackb(
            frame,
            strict_map_key=True,
            max_str_len=MAX_TEXT * 4,
            max_bin_len=MAX_NAME,
            max_array_len=MAX_NAMES,
            max_map_len=MAX_MAP,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, TypeError, RecursionError):
        raise WireError("a header that is no msgpack map within the limits") from None
    if type(header) is not dict or type(header.get("type")) is not str:
        raise WireError("a header that is no map with a type")
    return header


def _checked(values: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    if type(values) is not dict or values.keys() != checks.keys():
        raise WireError("not the fields of this message")
    name = ""
    try:
        return {(name := field): check(values[field]) for field, check in checks.items()}
    except WireError as error:
        raise WireError(f"{name}: {error}") from None


def _check_frames(
    layout: Layout,
    fields: Mapping[str, Any],
    frames: Sequence[Frame],
    dimensions: Dimensions | None,
) -> None:
    if len(frames) != len(layout.frames):
        raise WireError(f"{layout.name}: {len(frames)} frames after the header")
    if fields.get("vocabulary_bytes", 0) > MAX_VOCABULARY_BYTES:
        raise WireError(f"{layout.name}: a vocabulary of {fields['vocabulary_bytes']} bytes")
    if not layout.frames:
        return
    if dimensions is None:
        raise WireError(f"{layout.name}: from a peer that is in no run")
    if fields.get("unit_count", 0) > dimensions.shards * (dimensions.delay + 1) * 2:
        raise WireError(f"{layout.name}: {fields['unit_count']} units")
    for (name, length), frame in zip(layout.frames.items(), frames, strict=True):
        expected = length(dimensions, fields)
        if len(frame) != expected:
            raise WireError(f"{layout.name}: {name} has {len(frame)} bytes, expected {expected}")


def _build(layout: Layout, fields: dict[str, Any], frames: Sequence[Frame]) -> Message:
    values: dict[str, Any] = {**fields, **dict(zip(layout.frames, frames, strict=True))}
    values.pop("vocabulary_bytes", None)
    count = values.pop("unit_count", 0)
    if "units" in values:
        values["units"] = tuple(map(_unit, UNIT.iter_unpack(values["units"])))
    if layout.type is messages.Weights:
        values["ids"] = _split(values["ids"], count)
    message: Message = layout.type(**values)
    return message


def _unit(numbers: tuple[int, ...]) -> Unit:
    return Unit(*map(_integer, numbers))


def _split(frame: Frame, count: int) -> tuple[Frame, ...]:
    """Return the equal parts of a frame, without a copy."""
    view = memoryview(frame)
    size = len(view) // count if count else 0
    return tuple(view[i * size : (i + 1) * size] for i in range(count))
