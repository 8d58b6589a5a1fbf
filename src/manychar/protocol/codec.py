"""Message <-> frames, derived from the fields' types in `messages.py`.

The first frame is a header: a msgpack map of at most 8 KiB with the message's type and its small
fields, each of a stated kind and range. Tensors follow as raw frames; their number and lengths
follow from the message's type and the run's dimensions, never from what the header claims.

The header of a packed message is a fixed struct instead, which begins with a byte that begins no
msgpack map: of those messages each step has two for every worker.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import Annotated, Any, NamedTuple, cast, get_args, get_origin, get_type_hints

import msgpack

from manychar.protocol import field_types as field
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import Frame
from manychar.protocol.messages import Message
from manychar.protocol.unit_payload import PayloadFrame

WireError = field.WireError
HEADER_BYTES = 8192
MAX_BINARY = 64

Check = Callable[[Any], Any]
FrameRule = field.Tensor | field.Records | PayloadFrame


class Layout(NamedTuple):
    """How one type of message lies on the wire: its header's fields and its frames, in order.

    A packed message's header is a `struct`, which fixes the types of its fields, `fields` of their
    values by name; the first of them, whole numbers all, and its `reals` have limits in addition.
    """

    kind: type[Any]
    header: dict[str, Check]
    frames: dict[str, FrameRule]
    struct: Struct | None = None
    fields: Callable[[Mapping[str, Any]], tuple[Any, ...]] = lambda _: ()
    whole: int = 0
    reals: tuple[str, ...] = ()

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
        packed = Struct("<2s" + "".join(field.PACKED[h] for h in of_header.values()))
        whole = sum(hint is field.Integer for hint in of_header.values())
        if list(of_header.values())[: 1 + whole] != [field.Name, *[field.Integer] * whole]:
            raise TypeError(f"{kind}: a packed header begins with the run and all whole numbers")
        reals = tuple(name for name, hint in of_header.items() if hint is field.Number)
        return cls(kind, header, frames, packed, operator.itemgetter(*header), whole, reals)


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
    found, name = {}, ""
    try:
        for name, check in checks.items():
            found[name] = check(values[name])
    except WireError as error:
        raise WireError(f"{name}: {error}") from None
    return found


LAYOUTS = {kind.__name__: Layout.of(kind) for kind in get_args(Message)}
MAX_FRAMES = 1 + max(len(layout.frames) for layout in LAYOUTS.values())

NO_MAP = 0xC1  # msgpack never uses it
_PACKED_KINDS = [name for name, layout in LAYOUTS.items() if layout.struct]
_CODES = {name: bytes((NO_MAP, number)) for number, name in enumerate(_PACKED_KINDS)}
_PACKED = {code: LAYOUTS[name] for name, code in _CODES.items()}


def encode(message: Message) -> list[Frame]:
    """Return the frames of a message. ValueError if its header is too long."""
    kind = type(message).__name__
    layout, values = LAYOUTS[kind], vars(message)
    frames = [rule.pack(values[name]) for name, rule in layout.frames.items()]
    if layout.struct is not None:
        run_id, *others = layout.fields(values)
        return [layout.struct.pack(_CODES[kind], run_id.encode(), *others), *frames]
    header = {name: values[name] for name in layout.header}
    packed = msgpack.packb({"type": kind, **header}, default=dataclasses.asdict)
    if len(packed) > HEADER_BYTES:
        raise ValueError(f"a {kind} header of {len(packed)} bytes")
    return [packed, *frames]


def decode(frames: Sequence[Frame], dimensions: Dimensions | None) -> Message:
    """Return the message in the frames, or raise WireError.

    `dimensions` are those of the run this side is in; without them (a peer that was not welcomed
    yet) a message with tensors is an error.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise WireError(f"{len(frames)} frames")
    layout, header = _PACKED.get(bytes(frames[0][:2])), {}
    if layout is None:
        header = _header(frames[0])
        layout = LAYOUTS.get(header.pop("type"))
        if layout is None or layout.struct is not None:
            raise WireError("an unknown type of message")
    try:
        values = _unpacked(layout, frames[0]) if layout.struct else _checked(header, layout.header)
        values |= _tensors(layout, frames[1:], dimensions or values.get("dimensions"), values)
    except WireError as error:
        raise WireError(f"{layout.kind.__name__}: {error}") from None
    message: Message = object.__new__(layout.kind)
    vars(message).update(values)  # a tenth of the time of the constructor of a frozen dataclass
    return message


def _tensors(
    layout: Layout, frames: Sequence[Frame], size: Any, values: Mapping[str, Any]
) -> dict[str, Any]:
    if len(frames) != len(layout.frames):
        raise WireError(f"{len(frames)} frames after the header")
    if frames and size is None:
        raise WireError("frames from a peer that was not welcomed")
    found, name = {}, ""
    try:
        for (name, rule), frame in zip(layout.frames.items(), frames, strict=True):
            found[name] = rule.unpack(frame, size, values)
    except WireError as error:
        raise WireError(f"{name}: {error}") from None
    return found


def _unpacked(layout: Layout, frame: Frame) -> dict[str, Any]:
    """Return the header of a packed message, whose first field is the name of the run."""
    if layout.struct is None or len(frame) != layout.struct.size:
        raise WireError(f"a header of {len(frame)} bytes")
    _, run_id, *numbers = layout.struct.unpack(frame)
    values = dict(zip(layout.header, (_run_id(run_id), *numbers), strict=True))
    if (largest := max(numbers[: layout.whole])) > field.MAX_INTEGER:
        name = next(name for name, value in values.items() if value == largest)
        raise WireError(f"{name}: not a whole number in range")
    for name in layout.reals:
        if not math.isfinite(values[name]):
            raise WireError(f"{name}: not a finite number")
    return values


@functools.lru_cache(maxsize=16)
def _run_id(padded: bytes) -> str:
    checked = _check_of(field.Name)
    try:
        return str(checked(padded.rstrip(b"\0").decode("ascii", "replace")))
    except WireError as error:
        raise WireError(f"run_id: {error}") from None


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
