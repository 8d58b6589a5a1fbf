"""The header of a packed message: a fixed struct that is compared with the expected one.

    code, run, term, session, shards, step, lease …   what its receiver can know, too
    number, fresh; or seconds                         what only its sender knows: `told`

A side that waits for such a message packs the first part by itself, while it waits. A header that
begins with the same bytes has the same fields, which are neither unpacked nor checked again.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from manychar.protocol import field_types as field
from manychar.protocol.field_types import Frame

NO_MAP = 0xC1  # msgpack never uses it

Expected = Mapping[bytes, Mapping[str, Any]]
"""What a side waits for: by the first bytes of a header, the fields that they stand for."""


class PackedHeader:
    """How one type's header lies in a frame; `fields` are the types of its fields by name."""

    def __init__(self, number: int, fields: Mapping[str, Any], told: Sequence[str]) -> None:
        known = [name for name in fields if name not in told]
        if [*known, *told] != [*fields] or fields[known[0]] is not field.Name:
            raise TypeError(f"{[*fields]}: a packed header begins with the run, and ends with told")
        self.code = bytes((NO_MAP, number))
        self._run, *self._known_names = known
        self._told_names = told
        self._known, self._told = (
            struct.Struct("<" + begin + "".join(field.PACKED[fields[name]] for name in part))
            for begin, part in (("2s", known), ("", told))
        )
        self.size = self._known.size + self._told.size

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """Return the header of these fields."""
        return self.expected(values) + self._told.pack(*map(values.__getitem__, self._told_names))

    def expected(self, values: Mapping[str, Any]) -> bytes:
        """Return what the header begins with."""
        known = map(values.__getitem__, self._known_names)
        return self._known.pack(self.code, values[self._run].encode(), *known)

    def unpack(self, frame: Frame, expected: Expected, values: dict[str, Any]) -> Iterable[str]:
        """Add the fields to `values`; return the names of those that are to be checked."""
        known = expected.get(bytes(frame[: self._known.size]))
        if known is not None:
            values.update(known)
        else:
            _, run, *others = self._known.unpack_from(frame)
            values[self._run] = run.rstrip(b"\0").decode("ascii", "replace")
            values.update(zip(self._known_names, others, strict=True))
        told = self._told.unpack_from(frame, self._known.size)
        values.update(zip(self._told_names, told, strict=True))
        return self._told_names if known is not None else [*values]
