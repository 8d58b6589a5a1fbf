"""Message <-> frames, derived from the fields' types in `messages.py`.

The first frame is a header: a msgpack map of at most 8 KiB with the message's type and its small
fields, each of a stated kind and range. Tensors follow as raw frames; their number and lengths
follow from the message's type and the run's dimensions, never from what the header claims.

A packed message, of which each step has two for every worker, has a fixed struct as its header
(`packed_header.py`) and one frame after it; where it has another tensor, that follows the struct.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

import msgpack

from manychar.protocol import field_types as field
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import Frame
from manychar.protocol.messages import Message
from manychar.protocol.packed_header import Expected, PackedHeader
from manychar.protocol.unit_payload import PayloadFrame

WireError = field.WireError
HEADER_BYTES = 8192
MAX_BINARY = 64

NOTHING: Expected = {}

Check = Callable[[Any], Any]
FrameRule = field.Tensor | field.Records | PayloadFrame
M = TypeVar("M", bound=Message)


class Layout(NamedTuple):
    """How one type of message lies on the wire: its header's fields and its tensors, in order."""

    kind: type[Any]
    header: dict[str, Check]
    frames: dict[str, FrameRule]
    packed: PackedHeader | None = None

    @classmethod
    def of(cls, kind: type[Any]) -> "Layout":
        """Derive it from the types of the fields; TypeError for one without a limit."""
        hints = get_type_hints(kind, include_extras=True)
        hints = {each.name: hints[each.name] for each in dataclasses.fields(kind)}
        rules = {name: get_args(hint)[1:] for name, hint in hints.items()}
        frames = {n: r[0] for n, r in rules.items() if r and isinstance(r[0], FrameRule)}
        of_header = {name: hint for name, hint in hints.items() if name not in frames}
        header = {name: _check_of(hint) for name, hint in of_header.items()}
        if not kind.packed:
            return cls(kind, header, frames)
        if not 1 <= len(frames) <= 2:
            raise TypeError(f"{kind}: a packed message has one tensor or two")
        return cls(kind, header, frames, PackedHeader(kind.packed, of_header, kind.told))


def _check_of(hint: Any) -> Check:
    """Return what holds a value of the header to its type."""
    args = get_args(hint)
    if get_origin(hint) is Annotated:
        return _check_within(args[0], args[1])
    if args[1:] == (type(None),):
        given = _check_of(args[0])
        return lambda value: None if value is None else given(value)
    if dataclasses.is_dataclass(hint):
        layout = Layout.of(cast("type[Any]", hint))
        return lambda value: layout.kind(**_checked(value, layout.header))
    if isinstance(hint, type) and issubclass(hint, tuple):
        fields = get_type_hints(hint, include_extras=True).values()
        return functools.partial(_record, hint, [_check_of(each) for each in fields])
    raise TypeError(f"{hint}: a field of a message needs a type with a limit, see field_types.py")


def _check_within(hint: Any, limit: Any) -> Check:
    if isinstance(limit, field.Only):
        return functools.partial(_value, (hint, limit.also), limit)
    key, item = get_args(hint)
    if item is ...:
        return functools.partial(_list, _check_of(key), limit.most)
    return functools.partial(_map, _check_of(key), _check_of(item), limit.most)


def _value(kinds: tuple[Any, ...], limit: field.Only, value: Any) -> Any:
    if type(value) not in kinds or not limit.holds(value):
        raise WireError(limit.wrong)
    return value


def _list(item: Check, most: int, value: Any) -> tuple[Any, ...]:
    if type(value) is not list or len(value) > most:
        raise WireError(f"not a list of at most {most}")
    return tuple(map(item, value))


def _map(key: Check, item: Check, most: int, value: Any) -> dict[Any, Any]:
    if type(value) is not dict or len(value) > most:
        raise WireError(f"not a map of at most {most} entries")
    return {key(name): item(entry) for name, entry in value.items()}


def _record(kind: type[tuple[Any, ...]], checks: Sequence[Check], value: Any) -> Any:
    if type(value) is not list or len(value) != len(checks):
        raise WireError(f"not the {len(checks)} fields of {kind.__name__}")
    return kind(*(check(item) for check, item in zip(checks, value, strict=True)))


def _checked(values: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    if type(values) is not dict or values.keys() != checks.keys():
        raise WireError("not the fields of this message")
    fields: dict[str, Any] = values
    _hold(fields, checks, fields)
    return fields


def _hold(values: dict[str, Any], checks: Mapping[str, Check], names: Iterable[str]) -> None:
    """Hold the values of these names to their fields' types."""
    name = ""
    try:
        for name in names:
            values[name] = checks[name](values[name])
    except WireError as error:
        raise WireError(f"{name}: {error}") from None


LAYOUTS = {kind.__name__: Layout.of(kind) for kind in get_args(Message)}
MAX_FRAMES = 1 + max(len(layout.frames) for layout in LAYOUTS.values())

_PACKED = {layout.packed.code: layout for layout in LAYOUTS.values() if layout.packed}
_HEADER = "packed header"  # no field has such a name


def encode(message: Message) -> list[Frame]:
    """Return the frames of a message. ValueError if its header is too long."""
    kind = type(message).__name__
    layout, values = LAYOUTS[kind], vars(message)
    if layout.packed is not None:
        *_, (last, rule) = layout.frames.items()
        header = values.get(_HEADER) or _first_frame(layout, layout.packed, values)
        return [header, rule.pack(values[last])]
    frames = [rule.pack(values[name]) for name, rule in layout.frames.items()]
    header = {name: values[name] for name in layout.header}
    packed = msgpack.packb({"type": kind, **header}, default=dataclasses.asdict)
    if len(packed) > HEADER_BYTES:
        raise ValueError(f"a {kind} header of {len(packed)} bytes")
    return [packed, *frames]


def _first_frame(layout: Layout, packed: PackedHeader, values: Mapping[str, Any]) -> bytes:
    """Return a packed message's header, with all tensors but the last behind it."""
    *first, _ = layout.frames
    return b"".join((packed.pack(values), *(values[name] for name in first)))


def prepare(kind: type[M], values: Mapping[str, Any]) -> M:
    """Return a packed message whose first frame is packed by now, before its last tensor is known.

    `complete` adds that.
    """
    layout, packed = _packed_layout(kind)
    return _made(kind, {**values, _HEADER: _first_frame(layout, packed, values)})


def complete(message: M, **tensor: Frame) -> M:
    """Return a prepared message with its last tensor."""
    return _made(type(message), {**vars(message), **tensor})


def expect(kind: type[Message], values: Mapping[str, Any]) -> tuple[bytes, Mapping[str, Any]]:
    """Return what the header of a packed message will begin with, and the fields behind it."""
    _, packed = _packed_layout(kind)
    return packed.expected(values), values


def _packed_layout(kind: type[object]) -> tuple[Layout, PackedHeader]:
    layout = LAYOUTS[kind.__name__]
    if layout.packed is None:
        raise TypeError(f"{kind}: its header is not packed")
    return layout, layout.packed


def decode(
    frames: Sequence[Frame], dimensions: Dimensions | None, expected: Expected = NOTHING
) -> Message:
    """Return the message in the frames, or raise WireError.

    `dimensions` are those of the run this side is in; without them (a peer that was not welcomed
    yet) a message with tensors is an error. `expected` are packed messages that this side waits
    for: the result is the same without them.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise WireError(f"{len(frames)} frames")
    values: dict[str, Any] = {}  # the message's own: nothing is made of its fields before
    layout = _PACKED.get(bytes(frames[0][:2]))
    if layout is None:
        header = _header(frames[0])
        layout = LAYOUTS.get(header.pop("type"))
        if layout is None or layout.packed is not None:
            raise WireError("an unknown type of message")
    try:
        if layout.packed is not None:
            frames = _one_a_tensor(layout, layout.packed, frames)
            names = layout.packed.unpack(frames[0], expected, values)
            _hold(values, layout.header, names)
        else:
            values = _checked(header, layout.header)
        _add_tensors(layout, frames[1:], dimensions or values.get("dimensions"), values)
    except WireError as error:
        raise WireError(f"{layout.kind.__name__}: {error}") from None
    message: Message = _made(layout.kind, values)
    return message


def _made(kind: type[M], values: dict[str, Any]) -> M:
    """Return a message in a tenth of the time of the constructor of a frozen dataclass."""
    message = object.__new__(kind)
    object.__setattr__(message, "__dict__", values)
    return message


def _add_tensors(
    layout: Layout, frames: Sequence[Frame], size: Any, values: dict[str, Any]
) -> None:
    if len(frames) != len(layout.frames):
        raise WireError(f"{len(frames)} frames after the header")
    if frames and size is None:
        raise WireError("frames from a peer that was not welcomed")
    name = ""
    try:
        for (name, rule), frame in zip(layout.frames.items(), frames, strict=True):
            values[name] = rule.unpack(frame, size, values)
    except WireError as error:
        raise WireError(f"{name}: {error}") from None


def _one_a_tensor(layout: Layout, packed: PackedHeader, frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return a packed message's frames as of another one: the header, and one for each tensor."""
    if len(frames) != 2:
        raise WireError(f"{len(frames) - 1} frames after the header")
    first, last = frames
    if len(first) < packed.size or (len(first) > packed.size and len(layout.frames) == 1):
        raise WireError(f"a header of {len(first)} bytes")
    if len(layout.frames) == 1:
        return frames
    return first, memoryview(first)[packed.size :], last


def _header(frame: Frame) -> dict[Any, Any]:
    if len(frame) > HEADER_BYTES:
        raise WireError(f"a header of {len(frame)} bytes")
    try:
        header = msgpack.unpackb(
            frame,
            strict_map_key=True,
            max_str_len=field.TEXT_LENGTH * 4,
            max_bin_len=MAX_BINARY,
            max_array_len=field.MAX_ITEMS,
            max_map_len=field.MAX_ENTRIES,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, TypeError, RecursionError):
        raise WireError("a header that is no msgpack map within the limits") from None
    if type(header) is not dict or type(header.get("type")) is not str:
        raise WireError("a header that is no map with a type")
    return header
