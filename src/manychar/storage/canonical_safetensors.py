"""Safetensors files whose bytes are a function of their content."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from manychar.numerics.run_definition import canonical_json

ALIGNMENT = 8  # bytes; tensors begin at a multiple of it


def header_of(data: bytes) -> tuple[dict[str, Any], int]:
    """Return a file's header and where it ends: 8 bytes of length, then JSON."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), end


def as_safetensors(tensors: Mapping[str, NDArray[Any]], metadata: dict[str, str]) -> bytes:
    """Return the file that holds these arrays, of at least one dimension, and this metadata.

    The library writes metadata in an order that changes from call to call, so the header is written
    again with its keys in order.
    """
    # safetensors writes arrays that are not contiguous wrongly, and says nothing.
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    data = safetensors.numpy.save(contiguous, metadata)
    content, end = header_of(data)
    header = canonical_json(content).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(data)[end:]))
