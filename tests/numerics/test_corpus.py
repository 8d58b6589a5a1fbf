import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manychar.numerics.corpus import CharacterSet, Encoder, Streams, decode, id_dtype
from manychar.numerics.option import OptionError
from tests import encoding
from tests.numerics import reference


def encode(text: str) -> tuple[str, NDArray[np.unsignedinteger]]:
    """Return (vocabulary, ids) of a text that is one piece."""
    characters = CharacterSet()
    characters.add(text)
    return characters.vocabulary, Encoder(characters.vocabulary).encode(text)


TEXTS = {
    "English": "To be, or not to be: that is the question.\r\n",
    "German": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "Russian": "Съешь же ещё этих мягких французских булок",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Arabic": "نص حكيم له سر قاطع",
    "Japanese": "いろはにほへと ちりぬるを 色は匂へど",
    "astral": "\U0001f40d rnn \U0001d538\U00010348 \U0010ffff \uffff\uff00",
    "combining": "e\u0301 \u00e9 \u212b \u00c5 \0",
}


def numbered(count: int) -> NDArray[np.unsignedinteger]:
    """A text whose id is its position, so that what is read says where it was read."""
    return np.arange(count, dtype=np.uint16)


# ---- Text and ids


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_vocabulary_is_the_distinct_characters_in_code_point_order(text: str) -> None:
    vocabulary, ids = encode(text)
    assert vocabulary == "".join(sorted(set(text)))
    assert ids.shape == (len(text),)
    assert [vocabulary[i] for i in ids] == list(text)


@settings(deadline=None)
@given(st.text(min_size=1))
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    vocabulary, ids = encode(text)
    assert "".join(vocabulary[i] for i in ids) == text
    assert list(vocabulary) == sorted(set(text))
    plain = encoding.encode(text)
    assert (vocabulary, ids.dtype, ids.tobytes()) == (plain[0], plain[1].dtype, plain[1].tobytes())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_ids_of_pieces_are_those_of_the_whole(text: str) -> None:
    vocabulary, ids = encode(text)
    for length in (1, 2, 7):
        encoder, characters = Encoder(vocabulary), CharacterSet()
        pieces = [text[i : i + length] for i in range(0, len(text), length)]
        assert np.concatenate([*map(encoder.encode, pieces)]).tolist() == ids.tolist()
        for piece in pieces:
            characters.add(piece)
        assert (characters.vocabulary, characters.length) == (vocabulary, len(text))
        assert not encoder.unknown


@settings(deadline=None)
@given(st.text(), st.text())
def test_ids_become_the_utf_8_that_they_were(text: str, more: str) -> None:
    vocabulary, ids = encode(text + more)
    assert decode(vocabulary, ids[: len(text)]) == text.encode()


@pytest.mark.parametrize("vocabulary", ["abc", "ab\u00e9"])
def test_ids_out_of_range_are_no_text(vocabulary: str) -> None:
    with pytest.raises(IndexError):
        decode(vocabulary, np.array([0, 3], "u1"))


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, "u1"), (256, "u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")]
)
def test_ids_have_the_narrowest_dtype_that_holds_them(size: int, dtype: str) -> None:
    no_surrogates = itertools.chain(range(0xD800), range(0xE000, 0x110000))
    characters = "".join(map(chr, itertools.islice(no_surrogates, size)))
    vocabulary, ids = encode(characters)
    assert vocabulary == characters
    assert ids.dtype == id_dtype(size) == np.dtype(dtype)
    assert ids.tolist() == list(range(size))


# ---- Streams


@pytest.mark.parametrize("seq_length", [1, 2, 3, 7])
def test_positions_are_those_of_min_char_rnn(seq_length: int) -> None:
    T = seq_length
    for length in range(T + 1, 5 * T + 4):
        streams = Streams(numbered(length), 1, 1, T)
        assert streams.length == length
        steps = 3 * streams.steps_per_pass + 2
        rule = itertools.islice(reference.positions(length, T), steps)
        for step, (p, fresh) in enumerate(rule):
            batch = streams.batch_at(0, step)
            assert batch.ids.tolist() == [list(range(p, p + T + 1))], (length, step)
            assert batch.fresh is fresh, (length, step)


def test_the_position_does_not_depend_on_what_was_asked_before() -> None:
    streams = Streams(numbered(100), 2, 2, 3)
    in_order = [streams.batch_at(1, step) for step in range(20)]
    for step in reversed(range(20)):
        again = streams.batch_at(1, step)
        assert again.ids.tolist() == in_order[step].ids.tolist()
        assert again.fresh is in_order[step].fresh


@given(st.integers(1, 50), st.integers(1, 300))
def test_steps_per_pass_is_the_stated_formula(seq_length: int, more: int) -> None:
    length = seq_length + more
    streams = Streams(numbered(length), 1, 1, seq_length)
    K = max(1, math.ceil((length - seq_length - 1) / seq_length))
    assert streams.steps_per_pass == K
    assert [streams.batch_at(0, step).fresh for step in (0, K, 5 * K)] == [True] * 3
    assert not any(streams.batch_at(0, step).fresh for step in range(1, K))


def test_a_shard_owns_neighbouring_streams() -> None:
    S, B, length = 3, 2, 10
    streams = Streams(numbered(S * B * length), S, B, 4)
    for shard in range(S):
        firsts = streams.batch_at(shard, 0).ids[:, 0].tolist()
        assert firsts == [(shard * B + i) * length for i in range(B)]
        second = streams.batch_at(shard, 1).ids.tolist()
        assert second == [list(range(p + 4, p + 9)) for p in firsts]


def test_the_remainder_is_not_read() -> None:
    S, B, T = 3, 2, 4
    for characters in range(60, 66):
        streams = Streams(numbered(characters), S, B, T)
        assert streams.length == 10
        read = [
            streams.batch_at(shard, step).ids
            for shard in range(S)
            for step in range(streams.steps_per_pass)
        ]
        assert np.max(read) < 60
    assert Streams(numbered(66), S, B, T).length == 11


@pytest.mark.parametrize(
    ("validation", "kept"), [(0.0, 1000), (0.05, 950), (0.5, 500), (0.01, 990), (0.9, 100)]
)
def test_the_validation_text_is_the_end(validation: float, kept: int) -> None:
    S, B, T = 2, 5, 1
    streams = Streams(numbered(1000), S, B, T, validation)
    assert streams.length == kept // (S * B)
    assert list(streams.validation_ids) == list(numbered(1000)[kept:])
    last = streams.batch_at(S - 1, streams.steps_per_pass - 1).ids
    assert last.max() == kept - 2  # T + 1 before the end, by the rule of positions
    assert streams.batch_at(0, 0).ids[0, 0] == 0


@pytest.mark.parametrize("validation", [0.0004, 0.001])
def test_one_character_is_nothing_to_judge_by(validation: float) -> None:
    with pytest.raises(OptionError, match="at least 2 are needed"):
        Streams(numbered(1000), 2, 5, 1, validation)


def test_another_text_is_read_with_the_same_vocabulary() -> None:
    encoder = Encoder("abc\u00e9")
    assert encoder.encode("cab, bach").tolist() == [2, 0, 1, 1, 0, 2]
    assert encoder.encode("abba").tolist() == [0, 1, 1, 0]
    assert encoder.encode("\u00e9\ud800b\U0001f40d,").tolist() == [3, 1]
    assert encoder.unknown == {",": 2, " ": 1, "h": 1, "\ud800": 1, "\U0001f40d": 1}
    assert [character for character, _ in encoder.unknown.most_common(3)] == [",", " ", "h"]


def test_a_text_of_exactly_one_step_is_enough() -> None:
    streams = Streams(numbered(2 * 3 * 5), 2, 3, 4)
    assert (streams.length, streams.steps_per_pass) == (5, 1)
    assert all(streams.batch_at(1, step).fresh for step in range(4))
    assert streams.batch_at(1, 3).ids.tolist() == numbered(30)[15:].reshape(3, 5).tolist()


@pytest.mark.parametrize(("characters", "validation"), [(4 * 16 * 26 - 1, 0.0), (3000, 0.5)])
def test_a_text_that_is_too_short_is_refused_with_what_it_takes(
    characters: int, validation: float
) -> None:
    with pytest.raises(OptionError, match=r"1,664.*--shards times --streams") as refusal:
        Streams(numbered(characters), 4, 16, 25, validation)
    assert f"{int(characters * (1 - validation)):,} characters" in str(refusal.value)
    assert ("--validation" in str(refusal.value)) is (validation > 0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (
            (18_000, 4, 16, 25, 0.9999),
            "--validation 0.9999 of 18,000 characters leaves 2 characters, and 4 shards of 16"
            " streams of 25 + 1 characters need 1,664: use a longer text,"
            " or a smaller --validation",
        ),
        (
            (300, 4, 4, 25, 0.2),
            "--validation 0.2 of 300 characters leaves 240 characters, and 4 shards of 4 streams of"
            " 25 + 1 characters need 416: use a longer text,"
            " or a smaller --seq-length or --shards times --streams",
        ),
        (
            (5, 4, 4, 25, 0.0),
            "the text has 5 characters, and 4 shards of 4 streams of 25 + 1 characters need 416:"
            " use a longer text, or a smaller --shards times --streams times --seq-length",
        ),
        (
            (1, 2, 1, 5, 0.0),
            "the text has 1 character, and 2 shards of 1 stream of 5 + 1 characters need 12:"
            " use a longer text",
        ),
        (
            (2, 1, 1, 5, 0.0),
            "the text has 2 characters, and 1 shard of 1 stream of 5 + 1 characters needs 6:"
            " use a longer text, or a smaller --seq-length",
        ),
        (
            (1, 1, 1, 5, 0.0),
            "the text has 1 character, and 1 shard of 1 stream of 5 + 1 characters needs 6:"
            " use a longer text",
        ),
        ((1, 1, 1, 5, 0.5), "--validation 0.5 of 1 character leaves 0 for validation: "),
    ],
)
def test_the_advice_is_what_can_help(sizes: tuple[Any, ...], expected: str) -> None:
    characters, *rest = sizes
    with pytest.raises(OptionError) as refusal:
        Streams(numbered(characters), *rest)
    assert str(refusal.value).startswith(expected)
    assert str(refusal.value) == expected or expected.endswith(": ")


@pytest.mark.parametrize("streams", [1, 3])
def test_a_batch_is_a_contiguous_copy_of_the_ids_dtype(streams: int) -> None:
    text: NDArray[Any] = numbered(60)
    batch = Streams(text, 2, streams, 4).batch_at(1, 1)
    assert batch.ids.flags.c_contiguous
    assert batch.ids.dtype == text.dtype
    assert not np.shares_memory(batch.ids, text)


def test_the_ids_of_a_range_are_those_of_its_shards_as_one_contiguous_copy() -> None:
    text: NDArray[Any] = numbered(5 * 2 * 11)
    streams = Streams(text, 5, 2, 3)
    for step in (0, 1, streams.steps_per_pass - 1, streams.steps_per_pass, 40):
        assert streams.is_fresh(step) is streams.batch_at(0, step).fresh
        for first in range(5):
            for last in range(first, 5):
                ids = streams.ids_at(first, last, step)
                batches = [streams.batch_at(shard, step).ids for shard in range(first, last + 1)]
                assert ids.tolist() == np.array(batches).tolist()
                assert ids.flags.c_contiguous
                assert ids.dtype == text.dtype
                assert not np.shares_memory(ids, text)
