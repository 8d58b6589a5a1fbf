"""Digests of frames: every byte counts, of short frames and of long ones, which are folded."""

import numpy as np
import pytest

from manychar.protocol.unit_payload import FOLDED_FROM, digest, folded_digest

LENGTHS = (1, FOLDED_FROM - 1, FOLDED_FROM, FOLDED_FROM + 1, 5 * FOLDED_FROM + 1_037)


def noise(length: int) -> bytearray:
    return bytearray(np.random.default_rng(length).bytes(length))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("of", [digest, folded_digest])
def test_each_changed_byte_shows(of: object, length: int) -> None:
    assert callable(of)
    frame = noise(length)
    right = of(frame)
    for place in {0, length // 3, max(0, length - 1_030), length - 1}:
        frame[place] ^= 1 << place % 8
        assert of(frame) != right, place
        frame[place] ^= 1 << place % 8
    assert of(frame) == right


@pytest.mark.parametrize("of", [digest, folded_digest])
def test_a_frame_that_lost_its_end_shows(of: object) -> None:
    assert callable(of)
    frame = noise(5 * FOLDED_FROM)
    lengths = range(FOLDED_FROM - 9, 5 * FOLDED_FROM, 1_021)
    assert len({of(frame[:length]) for length in lengths}) == len(lengths)


@pytest.mark.parametrize(("hidden", "streams"), [(256, 16), (512, 8), (1024, 64)])
def test_streams_that_changed_places_show(hidden: int, streams: int) -> None:
    states = np.frombuffer(noise(4 * hidden * streams), np.float32).reshape(streams, hidden)
    swapped = states[[1, 0, *range(2, streams)]]
    assert digest(states.tobytes()) != digest(swapped.tobytes())
