"""The units of a loss: nats, which are computed, and bits, which are shown beside them."""

import math


def bits_of(nats: float) -> float:
    """Return nats as bits."""
    return nats / math.log(2)


def nats_of(bits: float) -> float:
    """Return bits as nats."""
    return bits * math.log(2)
