"""Sums without the columns of Wxh whose characters were not seen: the same bits, fewer bytes."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from manychar.numerics.model import Parameters
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import DIGEST_BYTES
from manychar.protocol.messages import UnitResult
from manychar.protocol.unit_payload import SPARSE_FROM, Payload, largest_payload, sparse_form

V, H = SPARSE_FROM + 3, 4
SIZE = Dimensions(vocabulary_size=V, hidden=H, seq_length=3, streams=2, shards=3, dtype="float32")


def gradient(size: Dimensions, seen: list[int]) -> NDArray[Any]:
    """Return a sum whose Wxh is +0.0 but for some columns."""
    flat = np.random.default_rng(1).standard_normal(size.parameters_bytes // size.value_bytes)
    parameters = Parameters(flat.astype(size.dtype), size.vocabulary_size, size.hidden)
    unseen = np.ones(size.vocabulary_size, bool)
    unseen[seen] = False
    parameters.named()["Wxh"][:, unseen] = 0
    return parameters.flat


def result(size: Dimensions, *sums: NDArray[Any], first: int = 0, last: int = 1) -> UnitResult:
    count = last - first + 1
    payload = Payload(
        tuple(each.tobytes() for each in sums),
        bytes(range(count)) * size.hidden_bytes,
        (0.5,) * count,
        bytes(count * DIGEST_BYTES),
        sparse_form(size),
    )
    numbers = dict.fromkeys(("term", "session", "lease", "step"), 1)
    return UnitResult(
        run_id="run",
        first=first,
        last=last,
        weights_digest=bytes(DIGEST_BYTES),
        seconds=0.1,
        payload=payload,
        **numbers,
    )


def on_the_wire(message: UnitResult) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(seen=st.lists(st.integers(0, V - 1), max_size=9))
def test_the_bits_are_kept_and_what_was_not_seen_is_not_sent(dtype: str, seen: list[int]) -> None:
    size = dataclasses.replace(SIZE, dtype=dtype)
    sent = result(size, gradient(size, seen))
    frames = on_the_wire(sent)
    assert decode(frames, size) == sent
    omitted = (V - len(set(seen))) * H * size.value_bytes
    of_shards = 2 * (size.hidden_bytes + 8 + DIGEST_BYTES)
    assert len(frames[1]) == size.parameters_bytes - omitted + V + of_shards


@pytest.mark.parametrize("value", [-0.0, float("nan"), float("-inf"), 1e-45])
@pytest.mark.parametrize("place", [(0, 0), (H - 1, V - 1)])
def test_a_column_is_sent_for_a_single_bit(value: float, place: tuple[int, int]) -> None:
    flat = gradient(SIZE, [])
    Parameters(flat, V, H).named()["Wxh"][place] = value
    sent = result(SIZE, flat)
    assert decode(on_the_wire(sent), SIZE) == sent


def test_a_unit_may_have_several_sums_each_with_its_columns() -> None:
    sums = gradient(SIZE, [1]), gradient(SIZE, [])
    sent = result(SIZE, *sums, first=1, last=2)
    assert decode(on_the_wire(sent), SIZE) == sent


def test_the_longest_frame_is_that_of_sums_with_all_columns() -> None:
    sums = [gradient(SIZE, list(range(V)))] * 2
    assert len(on_the_wire(result(SIZE, *sums, first=1, last=2))[1]) < largest_payload(SIZE)


@pytest.mark.parametrize("length", [0, 1, V // 2, 500, -1, -60])
def test_a_frame_of_another_length_is_refused(length: int) -> None:
    header, frame = on_the_wire(result(SIZE, gradient(SIZE, [3, 4])))
    for wrong in (frame[:length], frame + bytes(3)):
        with pytest.raises(WireError, match=r"UnitResult: payload: \d+ bytes"):
            decode([header, wrong], SIZE)


def test_columns_that_claim_more_than_came_are_refused() -> None:
    header, frame = on_the_wire(result(SIZE, gradient(SIZE, [3])))
    with pytest.raises(WireError, match="expected"):
        decode([header, b"\1" * V + frame[V:]], SIZE)


def test_a_small_vocabulary_sends_its_sums_as_they_are() -> None:
    size = dataclasses.replace(SIZE, vocabulary_size=SPARSE_FROM - 1)
    sent = result(size, gradient(size, [3]))
    frame = on_the_wire(sent)[1]
    assert frame.startswith(sent.payload.sums[0])
    assert decode([encode(sent)[0], frame], size) == sent
