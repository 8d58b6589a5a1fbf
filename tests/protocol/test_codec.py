"""Messages survive the wire; whatever else arrives is a WireError, and never anything else."""

import dataclasses
import enum
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manychar.numerics.tree_reduction import cover
from manychar.protocol import codec, messages
from manychar.protocol import field_types as field
from manychar.protocol.codec import WireError, complete, decode, encode, expect, prepare
from manychar.protocol.dimensions import Dimensions, Structure, most_units
from manychar.protocol.messages import Frame, Message, Unit
from manychar.protocol.packed_header import Expected
from manychar.protocol.unit_payload import Payload, PayloadFrame, largest_payload
from manychar.protocol.worker_tally import WorkerStats
from tests.protocol.stage import IN_RUN, status

SIZE = Dimensions(vocabulary_size=5, hidden=4, seq_length=3, streams=2, shards=3, dtype="float32")


def frame(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


ANY: dict[Any, st.SearchStrategy[Any]] = {
    field.Integer: st.integers(0, field.MAX_INTEGER),
    field.Positive: st.integers(1, field.MAX_INTEGER),
    field.Number: st.floats(allow_nan=False, allow_infinity=False),
    field.AnyNumber: st.floats(allow_nan=False),
    field.Flag: st.booleans(),
    field.Text: st.text(max_size=40).filter(str.isprintable),
    field.Name: st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True),
    field.Dtype: st.sampled_from(["float32", "float64"]),
    field.Digest: frame(4),
}
"""What a field of each simple type may hold; `any_of` makes the others from them."""


def payload_bytes(first: int, last: int) -> int:
    """Return how long the payload of a range of the shards is: its sums, and what is by shard."""
    sums = len(cover(SIZE.shards, (first, last))) * SIZE.parameters_bytes
    return sums + (last - first + 1) * (SIZE.hidden_bytes + 8 + field.DIGEST_BYTES)


def any_of(hint: Any, before: Mapping[str, Any]) -> st.SearchStrategy[Any]:  # noqa: PLR0911
    """Return what a field of this type may hold, after the message's fields before it."""
    if hint in ANY:
        return ANY[hint]
    kind, limit = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    items = [any_of(item, before) for item in get_args(kind) if item not in (..., NoneType)]
    match limit:
        case field.Tensor(length, exact):
            return frame(length(SIZE, before)) if exact else st.binary(max_size=60)
        case PayloadFrame():

            def again(value: Any) -> Any:
                return limit.unpack(limit.pack(value), SIZE, before)

            frames = frame(payload_bytes(before["first"], before["last"]))
            values = frames.map(lambda each: limit.unpack(each, SIZE, before))
            return values.filter(lambda value: value == again(value))  # a NaN is not itself
        case field.AtMost() if len(items) == 2:
            return st.dictionaries(*items, max_size=8)
        case field.AtMost(most):
            return st.lists(*items, max_size=min(most, 8)).map(tuple)
        case field.Records():
            return st.lists(*items, max_size=6).map(tuple)
    if get_origin(kind) is not None:
        return st.none() | items[0]
    return st.sampled_from(kind) if issubclass(kind, enum.Enum) else built(kind)


@st.composite
def built(draw: st.DrawFn, kind: Any) -> Any:
    values: dict[str, Any] = {}
    hints = get_type_hints(kind, include_extras=True)
    for of_class in ("packed", "told"):
        hints.pop(of_class, None)
    for name, hint in hints.items():
        within = name in ("first", "last") and "last" in hints
        shards = st.integers(values.get("first", 0), SIZE.shards - 1)
        values[name] = draw(shards if within else any_of(hint, values))
    return kind(**values)


any_message = st.sampled_from(get_args(Message)).flatmap(built)


def on_the_wire(message: Message) -> list[bytes]:
    return [bytes(part) for part in encode(message)]


class Added(Structure):
    """What somebody adds to messages.py, and nowhere else."""

    name: field.Name
    seen: Annotated[tuple[Unit, ...], field.AtMost(3)] | None
    weights: Annotated[Frame, field.Tensor(lambda size, _: 2 * size.hidden_bytes)]


class AddedPacked(Structure, packed=16, told=("number",)):
    """The same, of which there are many a step: its first field is a name."""

    name: field.Name
    number: field.Integer
    weights: Annotated[Frame, field.Tensor(lambda _, values: values["number"] % 7)]


@given(built(Added))
def test_a_message_is_added_by_its_class_alone(added: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(codec.LAYOUTS, "Added", codec.Layout.of(Added))
        assert decode(on_the_wire(added), SIZE) == added
        refused([encode(added)[0], b""], "Added: weights: 0 bytes, expected 64")
        refused(
            with_header(added, lambda fields: fields.update(name="")), "Added: name: not a name"
        )


@pytest.mark.parametrize("hint", [int, str, bytes, list[field.Name], tuple[field.Name, ...]])
def test_a_field_without_a_limit_is_no_field(hint: Any) -> None:
    with pytest.raises(TypeError, match="a limit"):
        codec.Layout.of(dataclasses.make_dataclass("Added", [("free", hint)]))


@given(any_message)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(on_the_wire(message), SIZE) == message


@given(any_message, st.data())
def test_mutated_frames_are_a_message_or_a_wire_error(
    message: Message, data: st.DataObject
) -> None:
    frames = on_the_wire(message)
    which = data.draw(st.integers(0, len(frames) - 1))
    part = bytearray(frames[which])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(part)))
        match data.draw(st.sampled_from(["cut", "grow", "change"])):
            case "cut":
                del part[at:]
            case "grow":
                part[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case _ if at < len(part):
                part[at] = data.draw(st.integers(0, 255))
    frames[which] = bytes(part)
    assert complaint(frames).isprintable()


def complaint(frames: Sequence[Frame]) -> str:
    """Return what is wrong with the frames; nothing if they are a message."""
    try:
        decode(frames, SIZE)
    except WireError as error:
        return str(error)
    return ""


@given(st.lists(st.binary(max_size=100), max_size=6))
def test_noise_is_a_wire_error(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(frames, SIZE)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_any_other_value_as_a_header_is_a_wire_error(value: object) -> None:
    with pytest.raises(WireError):
        decode([msgpack.packb(value)], SIZE)


# One case for each limit.

GOODBYE = messages.Goodbye(**IN_RUN, reason="done")
HEARTBEAT = messages.Heartbeat(**IN_RUN, longest_piece=0.0, heard=0, units=(Unit(1, 0, 0, 0, 0),))
STATUS = status(workers=(WorkerStats("ann", "here", "working", *(0,) * 3, *(0.0,) * 7),))
HELLO = messages.Hello(wire=1, role="worker", name="ann", instance="i", machine={})
READY = messages.Ready(**IN_RUN, fingerprint="0" * 64, libraries={}, longest_piece=0.0)
GRANT = messages.Grant(
    **IN_RUN,
    number=1,
    lease=1,
    lease_first=0,
    lease_last=2,
    first=1,
    last=2,
    step=0,
    fresh=True,
    weights=bytes(SIZE.parameters_bytes),
    hidden=bytes(2 * SIZE.hidden_bytes),
    ids=bytes(2 * SIZE.ids_bytes),
)
PAYLOAD = Payload(
    (bytes(SIZE.parameters_bytes),) * 2, bytes(2 * SIZE.hidden_bytes), (1.0, 2.0), bytes(2 * 4)
)
RESULT = messages.UnitResult(
    **IN_RUN,
    lease=1,
    first=1,
    last=2,
    step=0,
    weights_digest=bytes(4),
    seconds=0.5,
    payload=PAYLOAD,
)
NEW_WEIGHTS = messages.NewWeights(
    **IN_RUN,
    number=1,
    lease=1,
    first=1,
    last=2,
    step=0,
    fresh=False,
    weights=bytes(SIZE.parameters_bytes),
    ids=bytes(2 * SIZE.ids_bytes),
)
WELCOME = messages.Welcome(
    **IN_RUN,
    dimensions=SIZE,
    numerics="portable",
    seed=0,
    silence=2.0,
    vocabulary=b"abcde",
    fingerprint="same",
    libraries={},
)


def with_header(message: Message, change: Callable[[dict[str, Any]], object]) -> list[Frame]:
    """Return the message's frames with something changed in the header."""
    header, *rest = encode(message)
    fields = msgpack.unpackb(header)
    change(fields)
    return [msgpack.packb(fields), *rest]


def refused(frames: Sequence[Frame], reason: str, size: Dimensions | None = SIZE) -> None:
    """The frames are no message, for this reason."""
    with pytest.raises(WireError) as caught:
        decode(frames, size)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("message", "field", "value", "reason"),
    [
        (GOODBYE, "term", -1, "term: not a whole number in range"),
        (GOODBYE, "term", field.MAX_INTEGER + 1, "term: not a whole number in range"),
        (GOODBYE, "term", 1.0, "term: not a whole number in range"),
        (GOODBYE, "term", True, "term: not a whole number in range"),
        (GOODBYE, "run_id", "", "run_id: not a name"),
        (GOODBYE, "run_id", "a" * 65, "run_id: not a name"),
        (GOODBYE, "run_id", "a b", "run_id: not a name"),
        (GOODBYE, "run_id", "../a", "run_id: not a name"),
        (GOODBYE, "run_id", "a\n", "run_id: not a name"),
        (GOODBYE, "run_id", "ä", "run_id: not a name"),
        (GOODBYE, "run_id", b"run", "run_id: not a name"),
        (GOODBYE, "reason", "two\nlines", "reason: not a short printable text"),
        (GOODBYE, "reason", "\x1b[2J", "reason: not a short printable text"),
        (GOODBYE, "reason", "\u202e", "reason: not a short printable text"),
        (GOODBYE, "reason", "a" * 501, "reason: not a short printable text"),
        (GOODBYE, "reason", 1, "reason: not a short printable text"),
        (HEARTBEAT, "longest_piece", math.nan, "longest_piece: not a finite number"),
        (HEARTBEAT, "longest_piece", math.inf, "longest_piece: not a finite number"),
        (HEARTBEAT, "longest_piece", "1", "longest_piece: not a finite number"),
        (STATUS, "seconds", math.nan, "seconds: not a finite number"),
        (STATUS, "loss_nats_per_character", 1, "loss_nats_per_character: not a number"),
        (STATUS, "workers", ["a b"], "workers: not"),
        (STATUS, "workers", "ann", "workers: not a list of at most 7"),
        (STATUS, "counts", {"late": -1}, "counts: not a whole number in range"),
        (STATUS, "counts", {"a\tb": 1}, "counts: not a short printable text"),
        (HELLO, "machine", {"cpu": 1}, "machine: not a short printable text"),
        (READY, "libraries", {"cpu": 1}, "libraries: not a short printable text"),
        (READY, "libraries", [], "libraries: not a map of at most 24 entries"),
        (WELCOME, "dimensions", {}, "dimensions: not the fields of this message"),
    ],
)
def test_a_field_out_of_its_limits(
    message: Message, field: str, value: object, reason: str
) -> None:
    refused(with_header(message, lambda fields: fields.update({field: value})), reason)


@pytest.mark.parametrize("dtype", ["float16", "object"])
def test_no_dtype_is_believed(dtype: str) -> None:
    welcome = dataclasses.replace(WELCOME, dimensions=dataclasses.replace(SIZE, dtype=dtype))
    refused(encode(welcome), "dimensions: dtype: neither float32 nor float64")


@pytest.mark.parametrize("name", ["vocabulary_size", "hidden", "seq_length", "streams", "shards"])
def test_no_dimension_is_zero(name: str) -> None:
    changed = {**dataclasses.asdict(SIZE), name: 0}
    welcome = dataclasses.replace(WELCOME, dimensions=Dimensions(**changed))
    refused(encode(welcome), f"dimensions: {name}: not a whole number from 1 on")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_may_be_any_number(value: float) -> None:
    payload = PAYLOAD._replace(losses=(1.0, value))
    result = decode(encode(dataclasses.replace(RESULT, payload=payload)), SIZE)
    assert isinstance(result, messages.UnitResult)
    assert struct.pack("<d", result.payload.losses[1]) == struct.pack("<d", value)


def test_the_number_of_frames() -> None:
    refused([], "0 frames")
    refused([*encode(GRANT), b""], "5 frames")
    refused([*encode(GOODBYE), b""], "Goodbye: 1 frames after the header")
    for message in (GRANT, NEW_WEIGHTS, RESULT):
        frames = encode(message)
        kind = type(message).__name__
        refused(frames[:-1], f"{kind}: {len(frames) - 2} frames after the header")


def test_the_length_of_each_frame_is_exact() -> None:
    header, weights, hidden, ids = on_the_wire(GRANT)
    for wrong in (weights[:-1], weights + b"\0", b""):
        refused([header, wrong, hidden, ids], "Grant: weights: ")
    refused([header, weights, hidden * 2, ids], "Grant: hidden: 128 bytes, expected 64")
    refused([header, weights, hidden, ids[:-1]], "Grant: ids: 15 bytes, expected 16")
    header, payload = on_the_wire(RESULT)
    length = len(payload)
    assert length == 2 * SIZE.parameters_bytes + 2 * (SIZE.hidden_bytes + 8 + 4)
    for wrong in (payload[:-1], payload + b"\0", b""):
        refused([header, wrong], f"UnitResult: payload: {len(wrong)} bytes, expected {length}")


def test_the_length_of_a_variable_frame() -> None:
    header, units = on_the_wire(HEARTBEAT)
    refused([header, units[:-1]], "Heartbeat: units: 39 bytes, 16 records of 40 allowed")
    header, _ = on_the_wire(WELCOME)
    refused([header, bytes(4 * 0x110000 + 1)], "Welcome: vocabulary: 4456449 bytes")


# Packed headers.

PACKED = [RESULT, NEW_WEIGHTS]


@pytest.mark.parametrize("message", PACKED)
def test_every_truncated_packed_header_is_a_wire_error(message: Message) -> None:
    header, *rest = on_the_wire(message)
    for length in range(len(header)):
        assert complaint([header[:length], *rest])
    assert complaint([header + b"\0", *rest])


@pytest.mark.parametrize("message", PACKED)
def test_every_changed_byte_of_a_packed_header_shows(message: Message) -> None:
    header, *rest = on_the_wire(message)
    for at in range(len(header)):
        for value in {header[at] ^ 1, header[at] ^ 0x80, 0, 0xFF, ord("-")} - {header[at]}:
            changed = bytes([*header[:at], value, *header[at + 1 :]])
            try:
                found = decode([changed, *rest], SIZE)
            except WireError:
                continue
            assert found != message, at


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("run_id", "", "run_id: not a name"),
        ("run_id", "a b", "run_id: not a name"),
        ("run_id", "a\0b", "run_id: not a name"),
        ("run_id", "\0a", "run_id: not a name"),
        ("run_id", "ä", "run_id: not a name"),
        ("term", 2**53 + 1, "term: not a whole number in range"),
        ("session", 2**63, "session: not a whole number in range"),
        ("lease", 2**64 - 1, "lease: not a whole number in range"),
        ("step", 2**53 + 1, "step: not a whole number in range"),
        ("seconds", math.nan, "seconds: not a finite number"),
        ("seconds", math.inf, "seconds: not a finite number"),
    ],
)
def test_a_field_of_a_packed_header_out_of_its_limits(field: str, value: Any, reason: str) -> None:
    refused(encode(dataclasses.replace(RESULT, **{field: value})), f"UnitResult: {reason}")


@pytest.mark.parametrize("run_id", ["a", "a" * 64, "A-Z_0.9:x"])
def test_names_of_every_length_come_back(run_id: str) -> None:
    message = dataclasses.replace(RESULT, run_id=run_id)
    assert decode(encode(message), SIZE) == message


@pytest.mark.parametrize(("first", "last"), [(2, 1), (0, 3), (3, 3), (0, 2**53), (2**53, 2**53)])
@pytest.mark.parametrize("message", [RESULT, NEW_WEIGHTS, GRANT])
def test_a_range_that_the_run_does_not_have(message: Any, first: int, last: int) -> None:
    frames = encode(dataclasses.replace(message, first=first, last=last))
    assert complaint(frames)
    if message is RESULT:
        refused(frames, f"UnitResult: payload: shards {first} … {last} of 3")


def test_a_packed_header_is_that_of_a_known_message() -> None:
    header, payload = on_the_wire(RESULT)
    refused([b"\xc1\x07" + header[2:], payload], "no msgpack map within the limits")
    refused([b"\xc1", payload], "no msgpack map within the limits")
    refused([header, payload], "UnitResult: frames from a peer that was not welcomed", None)
    named = {"type": "UnitResult", "a": "x" * 40}
    as_long = msgpack.packb(named | {"b": "x" * (len(header) - len(msgpack.packb(named)) - 4)})
    assert len(as_long) == len(header)
    refused([as_long, payload], "an unknown type of message")


def expected_of(message: Any) -> Expected:
    """Return what a side that waits for this message expects."""
    known = {name: value for name, value in vars(message).items() if name not in message.told}
    return dict([expect(type(message), known)])


@pytest.mark.parametrize("message", PACKED)
def test_what_is_expected_is_neither_unpacked_nor_checked(
    message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, sent = expected_of(message), on_the_wire(message)
    checked: list[str] = []
    layout = codec.LAYOUTS[type(message).__name__]
    noted = {name: noting(name, check, checked) for name, check in layout.header.items()}
    monkeypatch.setitem(codec._PACKED, sent[0][:2], layout._replace(header=noted))
    assert decode(sent, SIZE, expected) == decode(sent, SIZE) == message
    assert checked[: len(message.told)] == list(message.told)
    assert len(checked) == len(message.told) + len(layout.header)


def noting(name: str, check: Callable[[Any], Any], noted: list[str]) -> Callable[[Any], Any]:
    def checks(value: Any) -> Any:
        noted.append(name)
        return check(value)

    return checks


@pytest.mark.parametrize("message", PACKED)
def test_what_only_the_sender_knows_is_checked_where_a_message_is_expected(message: Any) -> None:
    wrong = {"seconds": math.nan} if "seconds" in message.told else {"number": 2**53 + 1}
    frames = encode(dataclasses.replace(message, **wrong))
    with pytest.raises(WireError, match=next(iter(wrong))):
        decode(frames, SIZE, expected_of(message))
    header, *rest = on_the_wire(message)
    with pytest.raises(WireError, match="a header of"):
        decode([header[:-40], *rest], SIZE, expected_of(message))


@pytest.mark.parametrize("message", PACKED)
def test_another_header_than_the_expected_one_is_read_as_it_is(message: Any) -> None:
    for name in ("term", "session", "step", "lease"):
        another = dataclasses.replace(message, **{name: 9})
        assert decode(on_the_wire(another), SIZE, expected_of(message)) == another


def test_a_prepared_message_is_packed_before_its_last_tensor_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {name: value for name, value in vars(NEW_WEIGHTS).items() if name != "weights"}
    prepared = prepare(messages.NewWeights, fields)
    monkeypatch.setattr(codec, "_first_frame", None)  # it packs no more
    frames = encode(complete(prepared, weights=NEW_WEIGHTS.weights))
    assert decode(frames, SIZE) == NEW_WEIGHTS
    assert not hasattr(prepared, "weights")


@given(built(AddedPacked))
def test_a_packed_message_is_added_by_its_class_alone(added: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(codec.LAYOUTS, "AddedPacked", codec.Layout.of(AddedPacked))
        patch.setitem(codec._PACKED, b"\xc1\x10", codec.LAYOUTS["AddedPacked"])
        assert decode(on_the_wire(added), SIZE) == added


@pytest.mark.parametrize("shards", range(1, 34))
def test_the_payload_of_every_range_comes_back_and_none_is_larger_than_stated(shards: int) -> None:
    size = dataclasses.replace(SIZE, shards=shards, streams=1)
    longest = 0
    for first in range(shards):
        for last in range(first, shards):
            nodes, count = len(cover(shards, (first, last))), last - first + 1
            payload = Payload(
                tuple(bytes([i]) * size.parameters_bytes for i in range(nodes)),
                b"".join(bytes([i]) * size.hidden_bytes for i in range(count)),
                tuple(map(float, range(count))),
                b"".join(bytes([i]) * 4 for i in range(count)),
            )
            result = dataclasses.replace(RESULT, first=first, last=last, payload=payload)
            found = decode(encode(result), size)
            assert isinstance(found, messages.UnitResult)
            assert found.payload == payload
            longest = max(longest, len(payload.pack()))
    assert longest <= largest_payload(size)


def test_the_size_of_a_header() -> None:
    refused([bytes(codec.HEADER_BYTES + 1)], "a header of 8193 bytes")
    crowded = {f"{key:>450}": "x" for key in range(20)}
    with pytest.raises(ValueError, match="a Ready header of"):
        encode(dataclasses.replace(READY, libraries=crowded))


def test_the_size_of_lists_and_maps() -> None:
    def crowd(message: Message, name: str, value: object) -> list[Frame]:
        return with_header(message, lambda fields: fields.update({name: value}))

    refused(crowd(STATUS, "workers", ["a"] * 33), "no msgpack map within the limits")
    refused(crowd(STATUS, "counts", {str(key): 1 for key in range(25)}), "no msgpack map within")
    refused(crowd(READY, "libraries", {"a": b"b" * 65}), "no msgpack map within the limits")


def test_fields_that_are_missing_or_unknown() -> None:
    refused(with_header(GOODBYE, lambda fields: fields.pop("reason")), "not the fields")
    refused(with_header(GOODBYE, lambda fields: fields.update(more=1)), "not the fields")


@pytest.mark.parametrize("kind", ["Nothing", "__class__", "notice", ""])
def test_a_type_that_is_not_known(kind: str) -> None:
    refused(
        with_header(GOODBYE, lambda fields: fields.update(type=kind)), "an unknown type of message"
    )


@pytest.mark.parametrize("header", [[], 1, "Goodbye", {}, {"type": 1}, {"type": ["Goodbye"]}])
def test_a_header_that_is_no_map_with_a_type(header: object) -> None:
    refused([msgpack.packb(header)], "a header that is no map with a type")


@pytest.mark.parametrize(
    "header",
    [
        msgpack.packb({"type": "Goodbye", "text": msgpack.ExtType(4, b"x")}),
        msgpack.packb({"type": "Goodbye", "text": msgpack.Timestamp(0)}),
        msgpack.packb({1: "Goodbye"}),
        b"\x91" * 4000 + b"\x90",
        b"\x81\xa4type" * 600,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x81\xa4type\xa2\xff\xfe",
        b"\xc1",
        b"",
        msgpack.packb({"type": "Alive", "run_id": "r", "term": 1}) + b"\0",
        memoryview(b"\x81\xa4typ"),
    ],
    ids=[
        "extension",
        "timestamp",
        "integer key",
        "deep lists",
        "deep maps",
        "huge list",
        "huge map",
        "huge text",
        "no UTF-8",
        "never used",
        "empty",
        "more after it",
        "truncated",
    ],
)
def test_a_header_that_is_no_msgpack_map_within_the_limits(header: Frame) -> None:
    refused([header], "a header that is no msgpack map within the limits")


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", [-1, field.MAX_INTEGER + 1])
def test_a_number_of_a_unit_out_of_range(place: int, value: int) -> None:
    header, _ = encode(HEARTBEAT)
    numbers = [0] * 5
    numbers[place] = value
    refused([header, struct.pack("<5q", *numbers)], "not a whole number in range")


def test_the_number_of_units_is_bounded_by_the_run() -> None:
    most = most_units(SIZE)
    full = dataclasses.replace(HEARTBEAT, units=(Unit(1, 0, 0, 0, 0),) * most)
    assert decode(encode(full), SIZE) == full
    more = dataclasses.replace(full, units=(*full.units, Unit(1, 0, 0, 0, 0)))
    refused(encode(more), "Heartbeat: units: 680 bytes, 16 records of 40 allowed")


def test_tensors_need_the_dimensions_of_a_run() -> None:
    refused(encode(GRANT), "Grant: frames from a peer that was not welcomed", None)
    assert decode(encode(WELCOME), None) == WELCOME
    assert decode(encode(GOODBYE), None) == GOODBYE


def test_the_hello_of_another_version_can_be_read() -> None:
    """Its fields are those of version 1, so that it is refused with the reason."""
    fields = {"type": "Hello", "wire": 1, "role": "worker", "name": "w0", "instance": "i"}
    found = decode([msgpack.packb({**fields, "machine": {"host": "old"}})], None)
    assert isinstance(found, messages.Hello)
    assert found.wire == 1
