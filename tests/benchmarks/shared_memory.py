"""A prototype: long frames of processes on one machine go through memory that they share.

ZeroMQ carries the place of such a frame instead of it. Nothing here handles failures: it is to
measure what a real layer could save. `shared(folder)` is the program with it; the module patches
the sockets of each process of a run by `sitecustomize`.
"""

import itertools
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.program import HERE, ROOT, Program

FROM_BYTES = 65_536
SLOTS = 8  # a frame is read within the next step, or never
_MARK = b"in shared memory"
_PLACE = struct.Struct(f"<{len(_MARK)}sqqqq")  # process, descriptor, offset, length
_SCRIPT = """#!/bin/sh
export PYTHONPATH={folder}:{root}
exec {python} "$@"
"""


class Sender:
    """Slots of one length in a file without a name, which ends with its processes."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._file = os.memfd_create("manychar")
        os.ftruncate(self._file, SLOTS * length)
        self._memory = mmap.mmap(self._file, SLOTS * length)
        self._slots = itertools.cycle(range(SLOTS))
        self._last: tuple[Any, bytes] = (None, b"")

    def place(self, frame: Any) -> bytes:
        """Copy a frame, once where it goes to many in a row; return where it lies."""
        if self._last[0] is not frame:
            at = next(self._slots) * self._length
            self._memory[at : at + len(frame)] = frame
            packed = _PLACE.pack(_MARK, os.getpid(), self._file, at, len(frame))
            self._last = frame, packed
        return self._last[1]


class SharedMemory:
    """One process's end: what it sends, by length, and what it has opened of others."""

    def __init__(self) -> None:
        self._senders: dict[int, Sender] = {}
        self._opened: dict[tuple[int, int], memoryview] = {}

    def placed(self, frames: Sequence[Any]) -> list[Any]:
        """Return frames with the places of the long ones instead of them."""
        return [self._place(each) if len(each) >= FROM_BYTES else each for each in frames]

    def _place(self, frame: Any) -> bytes:
        length = len(frame)
        if length not in self._senders:
            self._senders[length] = Sender(length)
        return self._senders[length].place(frame)

    def found(self, frames: Sequence[Any]) -> list[Any]:
        """Return frames with what lies at the places among them."""
        return [self._find(each) if len(each) == _PLACE.size else each for each in frames]

    def _find(self, frame: Any) -> Any:
        mark, process, descriptor, at, length = _PLACE.unpack(frame)
        if mark != _MARK:
            return frame
        key = process, descriptor
        if key not in self._opened:
            with Path(f"/proc/{process}/fd/{descriptor}").open("rb") as file:
                opened = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            self._opened[key] = memoryview(opened)
        return self._opened[key][at : at + length]


def install() -> None:
    """Have the sockets of this process send and receive long frames so."""
    from manychar.network.dealer import Dealer  # noqa: PLC0415 - where it is installed alone
    from manychar.network.router import Router  # noqa: PLC0415

    memory = SharedMemory()
    dealer_send, dealer_receive = Dealer.send, Dealer.receive
    router_send, router_receive = Router.send, Router.receive

    def receive(self: Any) -> Any:
        frames = dealer_receive(self)
        return frames and memory.found(frames)

    def receive_of(self: Any) -> Any:
        got = router_receive(self)
        return got and got._replace(frames=memory.found(got.frames))

    patched: list[tuple[Any, str, Any]] = [
        (Dealer, "send", lambda self, frames: dealer_send(self, memory.placed(frames))),
        (Dealer, "receive", receive),
        (Router, "send", lambda self, peer, each: router_send(self, peer, memory.placed(each))),
        (Router, "receive", receive_of),
    ]
    for owner, name, value in patched:
        setattr(owner, name, value)


def shared(folder: Path) -> Program:
    """Return this program with the prototype in all processes of a run."""
    installed = "from tests.benchmarks.shared_memory import install\ninstall()\n"
    (folder / "sitecustomize.py").write_text(installed)
    script = folder / "python"
    script.write_text(_SCRIPT.format(folder=folder, root=ROOT, python=HERE.python))
    script.chmod(0o700)
    return Program(str(script), ROOT)
