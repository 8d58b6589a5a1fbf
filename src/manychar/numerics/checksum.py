"""A checksum of large arrays at the speed of memory.

The 64-bit words of a piece, each mixed and times a fixed odd random number, are summed modulo
2**64 (after Carter and Wegman, "Universal Classes of Hash Functions", JCSS 18, 1979); they are
the digits of one number. A change within one word always shows, others almost surely; the length is
not covered. It is made against faults, not against malice.
"""

import numpy as np

WORD = 8
PIECE = 32_768  # words: the numbers stay in the cache
DIGIT = 0x9E3779B97F4A7C15  # odd, so that no piece is lost
_numbers = np.random.default_rng(0).integers(2**64, size=PIECE, dtype=np.uint64) | np.uint64(1)


def checksum(data: bytes | bytearray | memoryview) -> int:
    """Return the checksum of contiguous bytes, 0 … 2**64 - 1."""
    words = np.frombuffer(data, "<u8", len(data) // WORD)
    total = int.from_bytes(data[len(words) * WORD :], "little")
    for start in range(0, len(words), PIECE):
        piece = words[start : start + PIECE]
        mixed = piece ^ (piece >> np.uint64(29))  # flipped signs must not cancel in pairs
        total = (total * DIGIT + int(np.dot(mixed, _numbers[: len(piece)]))) % 2**64
    return total


def checksum_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Return the checksum as a message carries it: 8 bytes, little-endian."""
    return checksum(data).to_bytes(WORD, "little")
