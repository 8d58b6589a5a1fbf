import os

import numpy as np
import pytest

from manychar.numerics.checksum import checksum


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1003, 16_384, 270_001])
def test_every_flipped_bit_and_every_truncation_counts(length: int) -> None:
    data = bytearray(os.urandom(length))
    right = checksum(data)
    assert 0 <= right < 2**64
    for place in range(0, length, max(7, length // 100)):
        for bit in range(8):
            data[place] ^= 1 << bit
            assert checksum(data) != right
            data[place] ^= 1 << bit
    assert checksum(data) == right
    if any(data[-1:]):
        assert checksum(data[:-1]) != right


def test_what_changes_places_counts() -> None:
    words = np.arange(70_000, dtype="<u8")
    swapped = words.copy()
    for one, other in ((3, 50), (3, 3 + 32_768), (32_767, 69_999)):
        swapped[:] = words
        swapped[[one, other]] = swapped[[other, one]]
        assert checksum(words.data.cast("B")) != checksum(swapped.data.cast("B"))


def test_it_is_the_same_in_every_process_and_at_every_alignment() -> None:
    data = bytes(range(64))
    assert checksum(data) == 12877518193937765566
    shifted = memoryview(b"x" + data)[1:]
    assert checksum(shifted) == checksum(data)


def test_flipped_signs_count() -> None:
    for dtype in ("<f4", "<f8"):
        right = np.arange(1, 1001, dtype=dtype)
        some = right.copy()
        some[[3, 5]] *= -1
        sums = {checksum(array.data.cast("B")) for array in (right, some, -right)}
        assert len(sums) == 3
