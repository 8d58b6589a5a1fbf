"""The faulty network: messages travel as frames, and may be lost, doubled, held up or overtaken.

A frame is copied only when it arrives, as a socket without copies would do it, so that writing
into a version that is still being sent shows.
"""

import dataclasses
import functools
import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from manychar.protocol import codec
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import DIGEST_BYTES
from manychar.protocol.messages import Frame, Message, Peer, UnitResult
from manychar.protocol.packed_header import Expected
from manychar.protocol.unit_payload import equal_parts
from tests.simulation.reference import Piece
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.worker_shell import WorkerShell
    from tests.simulation.world import World


@dataclasses.dataclass(eq=False)
class Connection:
    """One connection of a worker, as the server knows it by `peer`; `cut_until` is a partition."""

    peer: Peer
    worker: "WorkerShell"
    open: bool = True
    keeps: bool = True
    cut_until: float = 0.0
    cut_holds: bool = True
    up_at: float = 0.0
    down_at: float = 0.0
    successor: "Connection | None" = None


class Network:
    """All connections of one world; `waiting` is what lies there until a server is bound again."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.connections: dict[Peer, Connection] = {}
        self.waiting: list[tuple[Connection, list[Frame]]] = []

    def connect(self, worker: "WorkerShell", *, keeps: bool, late: bool) -> None:
        """Give a worker a new connection; what is under way on the old one is kept or lost."""
        connection = Connection(b"p%d" % (len(self.connections) + 1), worker)
        self.connections[connection.peer] = connection
        if (old := worker.connection_or_none) is not None:
            old.open, old.keeps = False, keeps
            old.successor = connection if late else None
            if late and not self.world.plan.disorder:
                connection.up_at, connection.down_at = old.up_at, old.down_at
        worker.connection_or_none = connection

    def bound(self) -> None:
        """Let a server that has just been bound have what waited for it."""
        waiting, self.waiting = self.waiting, []
        for connection, frames in waiting:
            self._arrive_up(connection, frames)

    def send_up(self, worker: "WorkerShell", message: Message) -> None:
        """Send from a worker to the server."""
        link = worker.connection
        link.up_at = self._travel(
            message, link, link.up_at, functools.partial(self._arrive_up, link)
        )

    def send_down(self, peer: Peer, message: Message) -> None:
        """Send from the server to one of its connections, or notice that it is gone."""
        link = self.connections[peer]
        if link.open:
            link.down_at = self._travel(
                message, link, link.down_at, functools.partial(self._arrive_down, link)
            )
        elif self.world.plan.notices_disconnects:
            self.world.after(0.0, functools.partial(self._unreachable, link))

    def _travel(
        self,
        message: Message,
        link: Connection,
        not_before: float,
        arrive: Callable[[list[Frame]], None],
    ) -> float:
        """Let a message travel; return when it arrives, which the next one may not overtake."""
        world, plan = self.world, self.world.plan
        frames, now, chance = codec.encode(message), world.now, world.chance
        lost = self._happens(plan.loss) or (now < link.cut_until and not link.cut_holds)
        arrives = now + plan.latency * chance.uniform(0.5, 1.5)
        if self._happens(plan.held_up):
            arrives += chance.uniform(0, 2 * plan.silence)
        arrives = max(arrives, link.cut_until if not world.peace else 0.0, not_before)
        if self._happens(plan.shuffled):
            overtaken = arrives + chance.uniform(0, plan.silence)
            world.after(overtaken - now, functools.partial(arrive, frames))
            return not_before
        for _ in range(2 if self._happens(plan.duplication) else 1):
            if not lost:
                world.after(arrives - now, functools.partial(arrive, frames))
            arrives += chance.uniform(0, 0.1) if plan.faults else 0.0
        return arrives if not plan.duplication else not_before

    def _happens(self, probability: float) -> bool:
        world = self.world
        return probability > 0 and not world.peace and world.chance.random() < probability

    def _arrive_up(self, link: Connection, frames: list[Frame]) -> None:
        """Hand a message to the server, or keep or lose it where there is none."""
        if not link.open:
            if not link.keeps:
                return
            link = link.successor or link
        world = self.world
        if world.server is None and not link.worker.above:
            if link.keeps:
                self.waiting.append((link, frames))
            return
        received = [bytes(frame) for frame in frames]
        if self._happens(0.15) and "confused" in world.plan.faults:
            self._forge(link, received, self._confused)
        if link.worker.above:
            world.arrive_at_relay(link, received)
        if world.server is None or link.worker.above:
            return
        accepted = world.oracle.accepted_in_all
        world.server.arrive(link.peer, received)
        counted = world.oracle.accepted_in_all > accepted
        for fault, forged, within in (
            ("differing-repeat", self._differing, 3),
            ("other-cut", self._cut_otherwise, 1),
        ):
            if counted and fault in world.plan.faults and self._happens(0.3):
                again = functools.partial(self._forge, link, received, forged)
                world.after(world.chance.uniform(0, within), again)

    def _forge(
        self,
        link: Connection,
        frames: list[bytes],
        forged: Callable[[UnitResult, Connection], UnitResult],
    ) -> None:
        """Let a result come that its worker did not send."""
        world = self.world
        server = world.server
        if (not server and not link.worker.above) or world.peace or world.oracle.wrong is not None:
            return
        message = codec.decode(frames, world.dimensions)
        if isinstance(message, UnitResult):
            result = forged(message, link)
            world.log(lambda: f"forged for {link.worker.name}: {forged.__name__}")
            forged_frames = [bytes(frame) for frame in codec.encode(result)]
            if link.worker.above:
                world.arrive_at_relay(link, forged_frames)
            elif server is not None:
                server.arrive(link.peer, forged_frames)

    def _confused(self, result: UnitResult, _: Connection) -> UnitResult:
        """Return a result that was computed from other weights, or another hidden state."""
        payload = result.payload
        sums = tuple(flip(each) for each in payload.sums)
        if self.world.chance.random() < 0.5:
            wrong = payload._replace(sums=sums)
            return dataclasses.replace(result, payload=wrong, weights_digest=bytes(DIGEST_BYTES))
        digests = equal_parts(payload.digests, len(payload.losses))
        digests[self.world.chance.randrange(len(digests))] = bytes(DIGEST_BYTES)
        wrong = payload._replace(sums=sums, digests=b"".join(digests))
        return dataclasses.replace(result, payload=wrong)

    def _differing(self, result: UnitResult, link: Connection) -> UnitResult:
        """Return a result that was computed wrongly; its sender is broken from now on."""
        assert self.world.server is not None
        self.world.broken.add(link.worker.name)
        return spoiled_result(result, self.world.chance)

    def _cut_otherwise(self, result: UnitResult, _: Connection) -> UnitResult:
        """Return the right result of another range, as if its lease had been revoked long ago."""
        world = self.world
        assert world.server is not None
        step = world.chance.choice((result.step, world.server.machine.state.step))
        step = min(step, world.plan.steps - 1)
        first = world.chance.randint(0, result.last)
        last = world.chance.randint(max(first, result.first), world.plan.shards - 1)
        return world.reference.result(result, step, first, last)

    def _arrive_down(self, link: Connection, frames: list[Frame]) -> None:
        """Put a message into a worker's mailbox."""
        if link.open or (link.keeps and link.successor is not None):
            link.worker.arrive([bytes(frame) for frame in frames])

    def _unreachable(self, link: Connection) -> None:
        above = self.world.relays.get(link.worker.above, self.world.server)
        if above is not None:
            above.unreachable(link.peer)


def decoded(
    frames: Sequence[Frame], size: Dimensions | None, expected: Expected = codec.NOTHING
) -> Message:
    """Return the message; what our own machines send is never malformed."""
    try:
        return codec.decode(frames, size, expected)
    except codec.WireError as error:
        raise Violation("wire", str(error)) from error


def spoiled(piece: Piece, chance: random.Random) -> Piece:
    """Return a shard's result with one of its three parts wrong, or not finite."""
    match chance.randrange(5):
        case 0:
            return dataclasses.replace(piece, gradient=flip(piece.gradient))
        case 1:
            return dataclasses.replace(piece, hidden=flip(piece.hidden))
        case 2:
            return dataclasses.replace(piece, loss=piece.loss + 0.5)
        case 3:
            return dataclasses.replace(piece, gradient=_not_finite(piece.gradient))
        case _:
            return dataclasses.replace(piece, hidden=_not_finite(piece.hidden))


def spoiled_result(result: UnitResult, chance: random.Random) -> UnitResult:
    """Return a unit's result with one loss, hidden state or sum wrong."""
    payload = result.payload
    name = chance.choice(("losses", "hidden", "sums"))
    if name == "hidden":
        parts: list[Any] = equal_parts(payload.hidden, len(payload.losses))
    else:
        parts = list(getattr(payload, name))
    wrong = chance.randrange(len(parts))
    parts[wrong] = parts[wrong] + 0.5 if name == "losses" else flip(parts[wrong])
    changed: Any = b"".join(parts) if name == "hidden" else tuple(parts)
    return dataclasses.replace(result, payload=payload._replace(**{name: changed}))


def flip(frame: Frame) -> bytes:
    """Return other bytes: the lowest bit of the first number."""
    changed = bytearray(frame)
    changed[0] ^= 1
    return bytes(changed)


def _not_finite(frame: Frame) -> bytes:
    return struct.pack("<f", math.nan) + bytes(frame[4:])
