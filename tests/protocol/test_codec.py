"""Messages survive the wire; whatever else arrives is a WireError, and never anything else."""

import dataclasses
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manychar.protocol import codec, messages
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.messages import Dimensions, Frame, Message, Unit

SIZE = Dimensions(
    vocabulary_size=5, hidden=4, seq_length=3, streams=2, shards=3, delay=1, dtype="float32"
)

integers = st.integers(0, codec.MAX_INTEGER)
names = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80)
printable = st.text(max_size=80).filter(str.isprintable)
hosts = st.text(st.characters(min_codepoint=0x20000, max_codepoint=0x20100), max_size=64)
finite = st.floats(allow_nan=False, allow_infinity=False)
losses = st.floats(allow_nan=False)
maps_of_texts = st.dictionaries(texts, printable, max_size=8)
envelope = {"run": names, "term": integers}
leased = {**envelope, **dict.fromkeys(("lease", "shard", "step", "version"), integers)}
units = st.builds(Unit, integers, integers, integers, integers)
worker_statistics = st.builds(
    messages.WorkerStats, names, hosts, names, *[integers] * 3, *[finite] * 4
)
dimensions = st.builds(
    Dimensions,
    **dict.fromkeys(
        ("vocabulary_size", "hidden", "seq_length", "streams", "shards"),
        st.integers(1, codec.MAX_INTEGER),
    ),
    delay=integers,
    dtype=st.sampled_from(["float32", "float64"]),
)


def frame(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


def weights_with(number: int) -> st.SearchStrategy[messages.Weights]:
    return st.builds(
        messages.Weights,
        **envelope,
        version=integers,
        weights=frame(SIZE.parameters_bytes),
        units=st.tuples(*[units] * number),
        ids=st.tuples(*[frame(SIZE.ids_bytes)] * number),
    )


MESSAGES: dict[type[Any], st.SearchStrategy[Any]] = {
    messages.Hello: st.builds(
        messages.Hello,
        wire=integers,
        role=names,
        name=names,
        instance=names,
        machine=maps_of_texts,
    ),
    messages.Welcome: st.builds(
        messages.Welcome,
        **envelope,
        steps=integers,
        dimensions=dimensions,
        numerics=names,
        seed=integers,
        silence=finite,
        vocabulary=st.binary(max_size=60),
    ),
    messages.Ready: st.builds(
        messages.Ready, **envelope, fingerprint=names, libraries=maps_of_texts, slowest=finite
    ),
    messages.Refused: st.builds(messages.Refused, reason=printable),
    messages.Reset: st.builds(messages.Reset, **envelope),
    messages.Grant: st.builds(
        messages.Grant,
        **leased,
        fresh=st.booleans(),
        weights=frame(SIZE.parameters_bytes),
        hidden=frame(SIZE.hidden_bytes),
        ids=frame(SIZE.ids_bytes),
    ),
    messages.Weights: st.integers(0, 4).flatmap(weights_with),
    messages.Revoke: st.builds(messages.Revoke, **envelope, lease=integers),
    messages.Gradient: st.builds(
        messages.Gradient,
        **leased,
        hidden_digest=frame(4),
        loss=losses,
        gradient=frame(SIZE.parameters_bytes),
        hidden=frame(SIZE.hidden_bytes),
    ),
    messages.Heartbeat: st.builds(
        messages.Heartbeat,
        **envelope,
        slowest=finite,
        computing=finite,
        units=st.lists(units, max_size=6).map(tuple),
    ),
    messages.Alive: st.builds(messages.Alive, **envelope),
    messages.Stop: st.builds(messages.Stop, **envelope),
    messages.Goodbye: st.builds(messages.Goodbye, **envelope, reason=printable),
    messages.Report: st.builds(
        messages.Report,
        **envelope,
        **dict.fromkeys(("step", "steps", "characters", "standing_by", "checkpoint"), integers),
        **dict.fromkeys(("validated", "best"), st.none() | integers),
        validation=st.none() | losses,
        checkpoint_age=finite,
        loss=losses,
        smooth_loss=losses,
        seconds=finite,
        workers=st.lists(names, max_size=8).map(tuple),
        counts=st.dictionaries(texts, integers, max_size=8),
    ),
    messages.Roster: st.builds(
        messages.Roster,
        **envelope,
        first=integers,
        total=integers,
        waiting=texts,
        workers=st.lists(worker_statistics, max_size=messages.ROSTER_LENGTH).map(tuple),
    ),
    messages.Notice: st.builds(
        messages.Notice, **envelope, level=st.sampled_from(messages.Level), text=printable
    ),
    messages.Done: st.builds(messages.Done, **envelope, code=integers, reason=printable),
}
any_message = st.sampled_from(sorted(MESSAGES, key=lambda kind: kind.__name__)).flatmap(
    MESSAGES.__getitem__
)


def on_the_wire(message: Message) -> list[bytes]:
    return [bytes(part) for part in encode(message)]


def test_every_message_has_a_layout_and_is_tried_here() -> None:
    assert {layout.type for layout in codec.LAYOUTS.values()} == set(MESSAGES)
    assert set(messages.Message.__args__) == set(MESSAGES)


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

NOTICE = messages.Notice(run="run-1", term=1, level=messages.Level.INFO, text="ann has joined")
HEARTBEAT = messages.Heartbeat(
    run="run-1", term=1, slowest=0.0, computing=0.0, units=(Unit(1, 0, 0, 0),)
)
REPORT = messages.Report(
    run="run-1",
    term=1,
    step=1,
    steps=2,
    loss=1.0,
    smooth_loss=1.0,
    characters=1,
    seconds=1.0,
    workers=("ann",),
    standing_by=0,
    counts={},
    checkpoint=0,
    checkpoint_age=0.5,
    validated=None,
    validation=None,
    best=None,
)
HELLO = messages.Hello(wire=1, role="worker", name="ann", instance="i", machine={})
GRADIENT = messages.Gradient(
    run="run-1",
    term=1,
    lease=1,
    shard=0,
    step=0,
    version=0,
    hidden_digest=bytes(4),
    loss=1.0,
    gradient=bytes(SIZE.parameters_bytes),
    hidden=bytes(SIZE.hidden_bytes),
)
WELCOME = messages.Welcome(
    run="run-1",
    term=1,
    steps=1,
    dimensions=SIZE,
    numerics="portable",
    seed=0,
    silence=2.0,
    vocabulary=b"abcde",
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
        (NOTICE, "term", -1, "term: not a whole number in range"),
        (NOTICE, "term", codec.MAX_INTEGER + 1, "term: not a whole number in range"),
        (NOTICE, "term", 1.0, "term: not a whole number in range"),
        (NOTICE, "term", True, "term: not a whole number in range"),
        (NOTICE, "run", "", "run: not a name"),
        (NOTICE, "run", "a" * 65, "run: not a name"),
        (NOTICE, "run", "a b", "run: not a name"),
        (NOTICE, "run", "../a", "run: not a name"),
        (NOTICE, "run", "a\n", "run: not a name"),
        (NOTICE, "run", "ä", "run: not a name"),
        (NOTICE, "run", b"run", "run: not a name"),
        (NOTICE, "text", "two\nlines", "text: not a short printable text"),
        (NOTICE, "text", "\x1b[2J", "text: not a short printable text"),
        (NOTICE, "text", "\u202e", "text: not a short printable text"),
        (NOTICE, "text", "a" * 501, "text: not a short printable text"),
        (NOTICE, "text", 1, "text: not a short printable text"),
        (HEARTBEAT, "slowest", math.nan, "slowest: not a finite number"),
        (HEARTBEAT, "slowest", math.inf, "slowest: not a finite number"),
        (HEARTBEAT, "slowest", "1", "slowest: not a finite number"),
        (REPORT, "seconds", math.nan, "seconds: not a finite number"),
        (REPORT, "loss", 1, "loss: not a number"),
        (REPORT, "workers", ["a b"], "workers: not a name"),
        (REPORT, "workers", "ann", "workers: not a list of at most 32 names"),
        (REPORT, "counts", {"late": -1}, "counts: not a whole number in range"),
        (REPORT, "counts", {"a\tb": 1}, "counts: not a short printable text"),
        (HELLO, "machine", {"cpu": 1}, "machine: not a short printable text"),
        (HELLO, "machine", [], "machine: not a map of at most 24 entries"),
        (GRADIENT, "hidden_digest", bytes(3), "hidden_digest: not a digest of 4 bytes"),
        (GRADIENT, "hidden_digest", "a" * 4, "hidden_digest: not a digest of 4 bytes"),
        (WELCOME, "dimensions", {}, "dimensions: not the fields of this message"),
        (WELCOME, "vocabulary_bytes", 4, "vocabulary has 5 bytes, expected 4"),
        (WELCOME, "vocabulary_bytes", 2**30, "a vocabulary of 1073741824 bytes"),
        (HEARTBEAT, "unit_count", 2, "units has 32 bytes, expected 64"),
        (HEARTBEAT, "unit_count", 13, "13 units"),
    ],
)
def test_a_field_out_of_its_limits(
    message: Message, field: str, value: object, reason: str
) -> None:
    refused(with_header(message, lambda fields: fields.update({field: value})), reason)


@pytest.mark.parametrize("dtype", ["float16", "object"])
def test_no_dtype_is_believed(dtype: str) -> None:
    welcome = dataclasses.replace(WELCOME, dimensions=dataclasses.replace(SIZE, dtype=dtype))
    refused(encode(welcome), "not the dimensions of a run")


@pytest.mark.parametrize("name", ["vocabulary_size", "hidden", "seq_length", "streams", "shards"])
def test_no_dimension_is_zero(name: str) -> None:
    changed = {**dataclasses.asdict(SIZE), name: 0}
    welcome = dataclasses.replace(WELCOME, dimensions=Dimensions(**changed))
    refused(encode(welcome), "not the dimensions of a run")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_may_be_any_number(value: float) -> None:
    gradient = decode(encode(dataclasses.replace(GRADIENT, loss=value)), SIZE)
    assert isinstance(gradient, messages.Gradient)
    assert struct.pack("<d", gradient.loss) == struct.pack("<d", value)


def test_the_number_of_frames() -> None:
    refused([], "0 frames")
    refused([*encode(GRADIENT), b"", b""], "5 frames")
    refused([*encode(NOTICE), b""], "Notice: 1 frames after the header")
    refused(encode(GRADIENT)[:2], "Gradient: 1 frames after the header")


def test_the_length_of_each_frame_is_exact() -> None:
    header, gradient, hidden = on_the_wire(GRADIENT)
    for wrong in (gradient[:-1], gradient + b"\0", b""):
        refused([header, wrong, hidden], "Gradient: gradient has")
    refused([header, gradient, hidden * 2], "Gradient: hidden has 64 bytes, expected 32")


def test_the_size_of_a_header() -> None:
    refused([bytes(codec.HEADER_BYTES + 1)], "a header of 4097 bytes")
    crowded = {f"{key:>450}": "x" for key in range(20)}
    with pytest.raises(ValueError, match="a Hello header of"):
        encode(dataclasses.replace(HELLO, machine=crowded))


def test_the_size_of_lists_and_maps() -> None:
    def crowd(name: str, value: object) -> list[Frame]:
        return with_header(
            REPORT if name != "machine" else HELLO, lambda fields: fields.update({name: value})
        )

    refused(crowd("workers", ["a"] * 33), "no msgpack map within the limits")
    refused(crowd("counts", {str(key): 1 for key in range(25)}), "no msgpack map within")
    refused(crowd("machine", {"a": b"b" * 65}), "no msgpack map within the limits")


def test_fields_that_are_missing_or_unknown() -> None:
    refused(with_header(NOTICE, lambda fields: fields.pop("text")), "not the fields")
    refused(with_header(NOTICE, lambda fields: fields.update(more=1)), "not the fields")


@pytest.mark.parametrize("kind", ["Nothing", "__class__", "notice", ""])
def test_a_type_that_is_not_known(kind: str) -> None:
    refused(with_header(NOTICE, lambda fields: fields.update(type=kind)), "no type of message")


@pytest.mark.parametrize("header", [[], 1, "Notice", {}, {"type": 1}, {"type": ["Notice"]}])
def test_a_header_that_is_no_map_with_a_type(header: object) -> None:
    refused([msgpack.packb(header)], "a header that is no map with a type")


@pytest.mark.parametrize(
    "header",
    [
        msgpack.packb({"type": "Notice", "text": msgpack.ExtType(4, b"x")}),
        msgpack.packb({"type": "Notice", "text": msgpack.Timestamp(0)}),
        msgpack.packb({1: "Notice"}),
        b"\x91" * 4000 + b"\x90",
        b"\x81\xa4type" * 600,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x81\xa4type\xa2\xff\xfe",
        b"\xc1",
        b"",
        msgpack.packb({"type": "Alive", "run": "r", "term": 1}) + b"\0",
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


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [-1, codec.MAX_INTEGER + 1])
def test_a_number_of_a_unit_out_of_range(place: int, value: int) -> None:
    header, _ = encode(HEARTBEAT)
    numbers = [0, 0, 0, 0]
    numbers[place] = value
    refused([header, codec.UNIT.pack(*numbers)], "not a whole number in range")


def test_the_number_of_units_is_bounded_by_the_run() -> None:
    most = SIZE.shards * (SIZE.delay + 1) * 2
    full = dataclasses.replace(HEARTBEAT, units=(Unit(1, 0, 0, 0),) * most)
    assert decode(encode(full), SIZE) == full
    more = dataclasses.replace(full, units=(*full.units, Unit(1, 0, 0, 0)))
    refused(encode(more), "Heartbeat: 13 units")


def test_tensors_need_the_dimensions_of_a_run() -> None:
    refused(encode(GRADIENT), "Gradient: from a peer that is in no run", None)
    assert decode(encode(WELCOME), None) == WELCOME
    assert decode(encode(NOTICE), None) == NOTICE
