"""A fleet in virtual time, with costs: the real machines of server, relays and workers.

The machines train a tiny model with preset results; every message takes the time and the bytes
that it has with the fleet's own sizes. Computing, the two threads of a server or relay and its link
to those below it are resources that do one thing after the other. Heartbeats are left out, but for
those by which a relay tells how many workers it has, and periodic checks happen once a step.
"""

import collections
import dataclasses
import functools
import heapq
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from manychar.fleet.capacity import (
    FIRST_SHARE,
    LATENCY,
    RESULT_HEADER,
    SHARD_BYTES,
    WEIGHTS_HEADER,
    Costs,
    Fleet,
    sum_bytes,
)
from manychar.numerics.corpus import Streams
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import start
from manychar.protocol.client_session import ClientPhase
from manychar.protocol.effects import Compute, ComputeFingerprint, Effect, Send
from manychar.protocol.events import (
    Computed,
    DeadlinePassed,
    FingerprintComputed,
    MailboxEmpty,
    PeerLost,
    Received,
    Started,
)
from manychar.protocol.messages import (
    WIRE_VERSION,
    Grant,
    Hello,
    Message,
    NewWeights,
    Ready,
    UnitResult,
)
from manychar.protocol.relay import Relay
from manychar.protocol.run_operation import Operation
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server import ParameterServer
from manychar.protocol.unit_payload import folded_digest
from manychar.protocol.worker import Worker

HIDDEN, LETTERS, SEQ_LENGTH, STREAM_LENGTH = 4, "abcde", 3, 11
SMALL_MESSAGE = 200  # bytes
NEVER = 86_400.0
SETTLED, STEPS = 3, 3
GOLDEN_RATIO = (1 + 5**0.5) / 2  # its multiples are spread evenly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Luck:
    """What differs from worker to worker, and what goes wrong.

    A worker's shards take exp(N(0, `spread`)) times as long as the fleet's; it fails `failures`
    times a second on average, and another takes its place after `replaced_after` seconds.
    """

    seed: int = 0
    spread: float = 0.0
    failures: float = 0.0
    replaced_after: float = 30.0


@dataclasses.dataclass
class Use:
    """Seconds for which each kind of thread was on a core, and bytes that the server's link took.

    `transfers` are the threads of both sides that send and receive.
    """

    server: float = 0.0
    relay: float = 0.0
    worker: float = 0.0
    transfers: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Means of a step of a fleet that has settled."""

    seconds: float
    use: Use


class Resource:
    """What does one thing after another: a thread."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def take(self, now: float, seconds: float) -> float:
        """Do something as soon as it is free; return when that is done."""
        self._free_at = max(now, self._free_at) + seconds
        return self._free_at


class Link:
    """One direction of a link: connections share it, some of them getting less, as TCP's do.

    Each message has a weight in 2 FIRST_SHARE - 1 … 1, and progresses in proportion to it. So of
    many that begin at once the first one arrives after FIRST_SHARE of the time of all.
    """

    def __init__(self, world: "VirtualFleet") -> None:
        self._world = world
        self._flows: list[tuple[float, int, float, Callable[[], None]]] = []
        self._weights = 0.0
        self._progress = self._at = 0.0
        self._count = self._timer = 0

    def carry(self, seconds: float, then: Callable[[], None]) -> None:
        """Carry a message that alone would take so long, then call `then`."""
        self._advance()
        self._count += 1
        weight = 1 - 2 * (1 - FIRST_SHARE) * (self._count * GOLDEN_RATIO % 1)
        end = self._progress + seconds / weight
        heapq.heappush(self._flows, (end, self._count, weight, then))
        self._weights += weight
        self._wait()

    def _advance(self) -> None:
        if self._flows:
            self._progress += (self._world.now - self._at) / self._weights
        self._at = self._world.now

    def _wait(self) -> None:
        self._timer += 1
        if self._flows:
            left = (self._flows[0][0] - self._progress) * self._weights
            self._world.after(max(0.0, left), functools.partial(self._arrive, self._timer))

    def _arrive(self, timer: int) -> None:
        if timer != self._timer:
            return  # another message has come since
        self._at = self._world.now
        self._progress, _, weight, then = heapq.heappop(self._flows)
        self._weights = self._weights - weight if self._flows else 0.0
        self._wait()
        then()


class _Listener:
    """A server's or relay's process: its main thread works off a mailbox."""

    def __init__(self, world: "VirtualFleet") -> None:
        self.world = world
        self.members: dict[bytes, _Worker | _Relay] = {}
        self._inward, self._outward, self._thread = Link(world), Link(world), Resource()
        self._mailbox: collections.deque[Received | PeerLost] = collections.deque()
        self._busy = False

    def arrive(self, event: Received | PeerLost) -> None:
        """Let an event wait until the thread comes to it."""
        self._mailbox.append(event)
        if not self._busy:
            self._work()

    def _work(self) -> None:
        """Handle the next event; what it leads to is sent when the thread has done it."""
        self._busy = True
        effects, seconds = self._handle(self._mailbox.popleft())
        self.world.after(seconds, functools.partial(self._done, effects))

    def _handle(self, event: Received | PeerLost) -> tuple[list[Effect], float]:
        """Return what follows from an event, and the seconds that the thread takes for it."""
        raise NotImplementedError

    def _done(self, effects: Sequence[Effect]) -> None:
        self._busy = False
        self._carry_out(effects)
        if self._mailbox:
            self._work()
        else:
            self._carry_out(self.machine.handle(MailboxEmpty(), self.world.now))

    machine: Any

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                assert effect.to is not None
                self.send_down(effect.to, effect.message)

    def transfer(self, count: int) -> float:
        """Have the thread that sends and receives move so many bytes; return when that is done."""
        return self._thread.take(self.world.now, self.world.transfer(count))

    def send_down(self, peer: bytes, message: Message) -> None:
        """Send to a member: through the thread, the link, and to the member's own thread."""
        if (member := self.members.get(peer)) is not None:
            count = self.world.bytes_of(message)
            if self is self.world.server:
                self.world.use.bytes_out += count
            there = functools.partial(member.receive, message, count)
            late = functools.partial(self.world.after, LATENCY, there)
            on_wire = self.world.fleet.on_wire(count)
            way = functools.partial(self._outward.carry, on_wire, late)
            self.world.after(self.transfer(count) - self.world.now, way)

    def receive_up(self, peer: bytes, message: Message, count: int) -> None:
        """Take what comes from a member: through the link, and through the thread."""
        if self is self.world.server:
            self.world.use.bytes_in += count
        through = functools.partial(self._through_thread, peer, message, count)
        self._inward.carry(self.world.fleet.on_wire(count), through)

    def _through_thread(self, peer: bytes, message: Message, count: int) -> None:
        at = self.transfer(count) - self.world.now
        self.world.after(at, functools.partial(self._arrive_up, peer, message))

    def _arrive_up(self, peer: bytes, message: Message) -> None:
        if peer in self.members:
            self.arrive(Received(message, peer))


class _Server(_Listener):
    """The server's process."""

    def __init__(self, world: "VirtualFleet") -> None:
        super().__init__(world)
        shards = world.fleet.size.shards
        definition = Definition(
            corpus_sha256="0" * 64, hidden=HIDDEN, seq_length=SEQ_LENGTH, shards=shards, streams=1
        )
        quiet: dict[str, Any] = {"workers": 1, "compute": False, "steps": 0, "checkpoint_every": 0}
        spec = RunSpec(
            run_id="virtual",
            term=1,
            definition=definition,
            operation=Operation(**quiet, sample_every=0, lease_timeout=NEVER),
            corpus=Streams(np.zeros(shards * STREAM_LENGTH, np.uint8), shards, 1, SEQ_LENGTH),
            vocabulary=LETTERS,
            state=start(definition, len(LETTERS)),
            fingerprint="virtual",
            libraries={},
        )
        self.machine = ParameterServer(spec, now=0.0)
        self._carry_out(self.machine.handle(Started(), 0.0))

    def _handle(self, event: Received | PeerLost) -> tuple[list[Effect], float]:
        world, step, seconds = self.world, self.machine.state.step, 0.0
        effects = self.machine.handle(event, world.now)
        if isinstance(event, Received) and isinstance(event.message, UnitResult):
            seconds = world.unit_seconds(event.message)
        if self.machine.state.step != step:
            effects += self.machine.handle(DeadlinePassed(), world.now)
            seconds += world.costs.of_step(world.fleet.size)
            world.after(seconds, functools.partial(world.applied, self.machine.state.step))
        world.use.server += seconds
        return effects, seconds


class _Relay(_Listener):
    """A relay's process, on a machine of its own; it is a member of the server, too."""

    def __init__(self, world: "VirtualFleet", above: _Listener, peer: bytes, name: str) -> None:
        super().__init__(world)
        self.above, self.peer = above, peer
        above.members[peer] = self
        self.machine = Relay(_hello(name, peer), server="virtual", connect_timeout=NEVER, now=0.0)
        self._carry_out(self.machine.handle(DeadlinePassed(), world.now))

    def receive(self, message: Message, count: int) -> None:
        """Take what comes from above, through the thread that sends and receives."""
        at = self.transfer(count) - self.world.now
        self.world.after(at, functools.partial(self.arrive, Received(message)))

    def _handle(self, event: Received | PeerLost) -> tuple[list[Effect], float]:
        world, seconds = self.world, 0.0
        effects = self.machine.handle(event, world.now)
        message = event.message if isinstance(event, Received) else None
        if isinstance(message, UnitResult):
            seconds = world.unit_seconds(message)
        elif isinstance(message, Grant | NewWeights):
            seconds = world.costs.of_relay(world.fleet.size)
        if isinstance(message, Ready) or message is None:  # the heartbeat tells of its workers
            effects += self.machine.handle(DeadlinePassed(), world.now)
        world.use.relay += seconds
        return effects, seconds

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ComputeFingerprint):
                event = FingerprintComputed("relay", {}, 0.0)
                self._carry_out(self.machine.handle(event, self.world.now))
            elif isinstance(effect, Send) and effect.to is None:
                count = self.world.bytes_of(effect.message)
                up = functools.partial(self.above.receive_up, self.peer, effect.message, count)
                self.world.after(self.transfer(count) + LATENCY - self.world.now, up)
            else:
                super()._carry_out([effect])


class _Worker:
    """A worker's process, on a machine of its own: one thread, which reads between two shards."""

    def __init__(self, world: "VirtualFleet", above: _Listener, peer: bytes, name: str) -> None:
        self.world, self.above, self.peer, self.name = world, above, peer, name
        above.members[peer] = self  # before its first message, which is sent while it is made
        self.alive = True
        self.factor = world.chance.lognormvariate(0.0, world.luck.spread)
        self._mailbox: collections.deque[Message] = collections.deque()
        self._busy = False
        hello = _hello(name, peer)
        self.machine = Worker(hello, server="virtual", connect_timeout=NEVER, now=world.now)
        self._carry_out(self.machine.handle(DeadlinePassed(), world.now))

    def receive(self, message: Message, count: int) -> None:
        """Take what comes from above, through the thread that sends and receives."""
        self.world.after(self.world.transfer(count), functools.partial(self._arrive, message))

    def _arrive(self, message: Message) -> None:
        """Let a message wait until the thread comes to it."""
        if self.alive:
            self._mailbox.append(message)
            if not self._busy:
                self._work()

    def _work(self) -> None:
        world, machine, seconds = self.world, self.machine, 0.0
        while self._mailbox:
            message = self._mailbox.popleft()
            if isinstance(message, Grant | NewWeights):
                seconds += world.costs.worker
            self._carry_out(machine.handle(Received(message), world.now))
        for effect in machine.handle(MailboxEmpty(), world.now):
            if isinstance(effect, Compute):
                self._compute(effect, seconds)

    def _compute(self, unit: Compute, before: float) -> None:
        world = self.world
        seconds = world.shard_seconds * self.factor
        self._busy = True
        result = world.preset(unit, seconds)
        world.use.worker += before + seconds
        world.after(before + seconds, functools.partial(self._done, result))

    def _done(self, result: Computed) -> None:
        self._busy = False
        if self.alive:
            self._carry_out(self.machine.handle(result, self.world.now))
            self._work()

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                count = self.world.bytes_of(effect.message)
                up = functools.partial(self.above.receive_up, self.peer, effect.message, count)
                self.world.after(self.world.transfer(count) + LATENCY, up)
            elif isinstance(effect, ComputeFingerprint):
                event = FingerprintComputed("virtual", {}, 0.0)
                self._carry_out(self.machine.handle(event, self.world.now))


def _hello(name: str, peer: bytes) -> Hello:
    return Hello(wire=WIRE_VERSION, role="worker", name=name, instance=peer.decode(), machine={})


class VirtualFleet:
    """One fleet, from its start until its steps are counted; the same seed gives the same run."""

    def __init__(self, fleet: Fleet, costs: Costs | None = None, luck: Luck | None = None) -> None:
        self.fleet, self.costs, self.luck = fleet, costs or Costs(), luck or Luck()
        self.chance = random.Random(f"fleet {self.luck.seed}")  # noqa: S311
        self.now = 0.0
        self.use = Use()
        self.shard_seconds = fleet.of_shard(self.costs)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._workers: list[_Worker] = []
        self._connections = 0
        self._step = 0
        self._gradient = np.full(
            HIDDEN * (2 * len(LETTERS) + HIDDEN + 1) + len(LETTERS), 1e-3, "<f4"
        )
        self._hidden = np.full(HIDDEN, 1e-3, "<f4").tobytes()
        self.server = _Server(self)

    def run(self, *, settled: int = SETTLED, steps: int = STEPS) -> Outcome:
        """Run, and return the means of `steps` steps after the first `settled`."""
        relays = [
            _Relay(self, self.server, self._new_peer(), f"r{number}")
            for number in range(self.fleet.relays)
        ]
        self._until(lambda: all(each.machine.phase is ClientPhase.CONNECTED for each in relays))
        above: Sequence[_Listener] = relays or [self.server]
        for number in range(self.fleet.workers):
            self._join(f"w{number}", above[number % len(above)])
        if self.luck.failures:
            self._fail_later()
        began = self._until(lambda: self._step >= settled)
        self.use = Use()
        seconds = (self._until(lambda: self._step >= settled + steps) - began) / steps
        mean = {name: value / steps for name, value in vars(self.use).items()}
        return Outcome(seconds, Use(**mean))

    def _until(self, true: Callable[[], bool]) -> float:
        while not true():
            self.now, _, event = heapq.heappop(self._queue)
            event()
        return self.now

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let an event happen some seconds from now."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + seconds, self._order, event))

    def applied(self, step: int) -> None:
        """Note that the server has applied a step."""
        self._step = step

    def transfer(self, count: int) -> float:
        """Return how long a thread that sends and receives takes for a message."""
        seconds = self.costs.of_messages(1, count, keys=self.fleet.keys)
        self.use.transfers += seconds
        return seconds

    def bytes_of(self, message: Message) -> int:
        """Return how long a message is with the fleet's own sizes."""
        size = self.fleet.size
        if isinstance(message, UnitResult):
            shards = message.last - message.first + 1
            sums = sum_bytes(size, (message.first, message.last))
            return RESULT_HEADER + sums + shards * (size.hidden_bytes + SHARD_BYTES)
        if isinstance(message, NewWeights | Grant):
            shards = message.last - message.first + 1
            of_shards = shards * size.ids_bytes
            if isinstance(message, Grant):
                of_shards += shards * size.hidden_bytes
            return WEIGHTS_HEADER + size.parameters_bytes + of_shards
        return SMALL_MESSAGE

    def unit_seconds(self, result: UnitResult) -> float:
        """Return how long the server's main thread takes for a unit."""
        return self.costs.of_units(self.fleet.size, 1, len(result.payload.sums))

    def preset(self, unit: Compute, seconds: float) -> Computed:
        """Return a shard's result, which is always the same."""
        return Computed(
            shard=unit.shard,
            step=unit.step,
            weights_digest=folded_digest(unit.weights),
            loss=1.0,
            gradient=self._gradient,
            hidden=self._hidden,
            longest_piece=0.0,
            seconds=seconds,
        )

    # Workers.

    def _new_peer(self) -> bytes:
        self._connections += 1
        return b"p%d" % self._connections

    def _join(self, name: str, above: _Listener) -> None:
        self._workers.append(_Worker(self, above, self._new_peer(), name))

    def _fail_later(self) -> None:
        rate = self.luck.failures * self.fleet.workers
        self.after(self.chance.expovariate(rate), self._fail)

    def _fail(self) -> None:
        """End a worker; its connection is noticed to be closed at once."""
        self._fail_later()
        worker = self._workers.pop(self.chance.randrange(len(self._workers)))
        worker.alive = False
        del worker.above.members[worker.peer]
        worker.above.arrive(PeerLost(worker.peer))
        again = functools.partial(self._join, f"{worker.name}-again", worker.above)
        self.after(self.luck.replaced_after, again)
