"""Safetensors files whose bytes are a function of what they hold: equal contents, equal files."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.run_definition import canonical_json
from manychar.storage.atomic_files import parsed

ALIGNMENT = 8  # bytes; tensors begin at a multiple of it
_NAMES = {"float32": "F32", "float64": "F64"}
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def as_safetensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the file that holds these arrays, and this metadata.

    The library would order metadata differently from call to call, write arrays that are not
    contiguous wrongly, and hold three copies of everything meanwhile.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts: list[bytes | memoryview] = []
    end = 0
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + array.nbytes
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        parts.append(little.data.cast("B"))
        kind, shape = _NAMES[array.dtype.name], list(array.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def metadata_of(data: bytes) -> dict[str, str]:
    """Return a file's metadata: 8 bytes of length, then JSON. Raises ValueError and its like."""
    found: dict[str, str] = _header(data).get("__metadata__") or {}
    return found


def from_safetensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Return views of a file's arrays: nothing is copied.

    Raises ValueError, TypeError, KeyError or AttributeError where it is none.
    """
    header = _header(data)
    header.pop("__metadata__", None)
    first = 8 + int.from_bytes(data[:8], "little")
    arrays: dict[str, NDArray[Any]] = {}
    for name, tensor in header.items():
        (begin, end), shape, dtype = tensor["data_offsets"], tensor["shape"], tensor["dtype"]
        count = math.prod(shape)
        if (
            not 0 <= begin <= end <= len(data) - first
            or end - begin != count * _DTYPES[dtype].itemsize
        ):
            raise ValueError(f"{name} is not where the header says")
        array = np.frombuffer(data, _DTYPES[dtype], count, first + begin)
        arrays[name] = array.reshape(shape)
    return arrays


def _header(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = parsed(data[8 : 8 + length])
    return header
