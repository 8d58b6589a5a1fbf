"""A fleet in virtual time, with costs: the real machines of server and workers, and what they cost.

The machines train a tiny model with preset results; every message takes the time and the bytes
that it has with the fleet's own sizes. Computing, the server's two threads and its link are
resources that do one thing after the other. Heartbeats are left out, and the server's periodic
checks happen once a step.
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
    LATENCY,
    RESULT_HEADER,
    SHARD_BYTES,
    WEIGHTS_HEADER,
    Costs,
    Fleet,
)
from manychar.numerics.corpus import Streams
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import start
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
from manychar.protocol.messages import WIRE_VERSION, Grant, Hello, Message, NewWeights, UnitResult
from manychar.protocol.run_operation import Operation
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server import ParameterServer
from manychar.protocol.unit_payload import digest
from manychar.protocol.worker import Worker

HIDDEN, LETTERS, SEQ_LENGTH, STREAM_LENGTH = 4, "abcde", 3, 11
SMALL_MESSAGE = 200  # bytes
NEVER = 86_400.0
SETTLED, STEPS = 3, 3


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
    """What does one thing after another: a thread, or one direction of a link."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def take(self, now: float, seconds: float) -> float:
        """Do something as soon as it is free; return when that is done."""
        self._free_at = max(now, self._free_at) + seconds
        return self._free_at


class _Server:
    """The server's process: its main thread works off a mailbox."""

    def __init__(self, world: "VirtualFleet") -> None:
        self.world = world
        self._mailbox: collections.deque[Received | PeerLost] = collections.deque()
        self._busy = False
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

    def arrive(self, event: Received | PeerLost) -> None:
        """Let an event wait until the thread comes to it."""
        self._mailbox.append(event)
        if not self._busy:
            self._work()

    def _work(self) -> None:
        """Handle the next event; what it leads to is sent when the thread has done it."""
        world, event = self.world, self._mailbox.popleft()
        self._busy = True
        step = self.machine.state.step
        effects = self.machine.handle(event, world.now)
        seconds = 0.0
        if isinstance(event, Received) and isinstance(event.message, UnitResult):
            seconds = world.unit_seconds(event.message)
        if applied := self.machine.state.step != step:
            effects += self.machine.handle(DeadlinePassed(), world.now)
            seconds += world.costs.of_step(world.fleet.size)
        world.use.server += seconds
        world.after(seconds, functools.partial(self._done, effects, applied=applied))

    def _done(self, effects: Sequence[Effect], *, applied: bool) -> None:
        self._busy = False
        if applied:
            self.world.applied(self.machine.state.step)
        self._carry_out(effects)
        if self._mailbox:
            self._work()
        else:
            self.machine.handle(MailboxEmpty(), self.world.now)

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                assert effect.to is not None
                self.world.send_down(effect.to, effect.message)


class _Worker:
    """A worker's process, on a machine of its own: one thread, which reads between two shards."""

    def __init__(self, world: "VirtualFleet", peer: bytes, name: str) -> None:
        self.world, self.peer, self.name = world, peer, name
        self.alive = True
        self.factor = world.chance.lognormvariate(0.0, world.luck.spread)
        self._mailbox: collections.deque[Message] = collections.deque()
        self._busy = False
        hello = Hello(
            wire=WIRE_VERSION, role="worker", name=name, instance=peer.decode(), machine={}
        )
        self.machine = Worker(hello, server="virtual", connect_timeout=NEVER, now=world.now)
        self._carry_out(self.machine.handle(DeadlinePassed(), world.now))

    def arrive(self, message: Message) -> None:
        """Let a message wait until the thread comes to it."""
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
                self.world.send_up(self, effect.message)
            elif isinstance(effect, ComputeFingerprint):
                event = FingerprintComputed("virtual", {}, 0.0)
                self._carry_out(self.machine.handle(event, self.world.now))


class VirtualFleet:
    """One fleet, from its start until its steps are counted; the same seed gives the same run.

    A relay will be another process here, a server to its workers and a worker above: `send_up` and
    `send_down` are where messages would go through it.
    """

    def __init__(self, fleet: Fleet, costs: Costs | None = None, luck: Luck | None = None) -> None:
        self.fleet, self.costs, self.luck = fleet, costs or Costs(), luck or Luck()
        self.chance = random.Random(f"fleet {self.luck.seed}")  # noqa: S311
        self.now = 0.0
        self.use = Use()
        self.shard_seconds = fleet.of_shard(self.costs)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._inward, self._outward, self._thread = Resource(), Resource(), Resource()
        self._workers: dict[bytes, _Worker] = {}
        self._connections = 0
        self._step = 0
        self._gradient = np.full(
            HIDDEN * (2 * len(LETTERS) + HIDDEN + 1) + len(LETTERS), 1e-3, "<f4"
        )
        self._hidden = np.full(HIDDEN, 1e-3, "<f4").tobytes()
        self.server = _Server(self)

    def run(self, *, settled: int = SETTLED, steps: int = STEPS) -> Outcome:
        """Run, and return the means of `steps` steps after the first `settled`."""
        for number in range(self.fleet.workers):
            self._join(f"w{number}")
        if self.luck.failures:
            self._fail_later()
        began = self._until(settled)
        self.use = Use()
        seconds = (self._until(settled + steps) - began) / steps
        mean = {name: value / steps for name, value in vars(self.use).items()}
        return Outcome(seconds, Use(**mean))

    def _until(self, step: int) -> float:
        while self._step < step:
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

    # Messages.

    def send_down(self, peer: bytes, message: Message) -> None:
        """Send from the server: through its thread, its link, and to the worker."""
        if (worker := self._workers.get(peer)) is not None:
            count = self.bytes_of(message)
            self.use.bytes_out += count
            sent = self._transfer(self.now, count)
            on_the_way = self._outward.take(sent, self.fleet.on_wire(count))
            arrives = on_the_way + LATENCY + self._at_worker(count)
            self.after(arrives - self.now, functools.partial(self._arrive_down, worker, message))

    def send_up(self, worker: _Worker, message: Message) -> None:
        """Send from a worker: to the server's link, through its thread to its mailbox."""
        count = self.bytes_of(message)
        at_link = self._at_worker(count) + LATENCY
        self.after(at_link, functools.partial(self._reach_link, worker.peer, message, count))

    def _reach_link(self, peer: bytes, message: Message, count: int) -> None:
        self.use.bytes_in += count
        received = self._inward.take(self.now, self.fleet.on_wire(count))
        self.after(received - self.now, functools.partial(self._reach_thread, peer, message, count))

    def _reach_thread(self, peer: bytes, message: Message, count: int) -> None:
        arrives = self._transfer(self.now, count)
        self.after(arrives - self.now, functools.partial(self._arrive_up, peer, message))

    def _transfer(self, at: float, count: int) -> float:
        seconds = self.costs.of_messages(1, count, keys=self.fleet.keys)
        self.use.transfers += seconds
        return self._thread.take(at, seconds)

    def _at_worker(self, count: int) -> float:
        seconds = self.costs.of_messages(1, count, keys=self.fleet.keys)
        self.use.transfers += seconds
        return seconds

    def _arrive_up(self, peer: bytes, message: Message) -> None:
        if peer in self._workers:
            self.server.arrive(Received(message, peer))

    def _arrive_down(self, worker: _Worker, message: Message) -> None:
        if worker.alive:
            worker.arrive(message)

    def bytes_of(self, message: Message) -> int:
        """Return how long a message is with the fleet's own sizes."""
        size = self.fleet.size
        if isinstance(message, UnitResult):
            shards, sums = message.last - message.first + 1, len(message.payload.sums)
            of_shards = shards * (size.hidden_bytes + SHARD_BYTES)
            return RESULT_HEADER + sums * size.parameters_bytes + of_shards
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
            weights_digest=digest(unit.weights),
            loss=1.0,
            gradient=self._gradient,
            hidden=self._hidden,
            slowest=0.0,
            seconds=seconds,
        )

    # Workers.

    def _join(self, name: str) -> None:
        self._connections += 1
        peer = b"p%d" % self._connections
        # Its first message is sent while it is made: it is known before that.
        worker = _Worker(self, peer, name)
        self._workers[peer] = worker

    def _fail_later(self) -> None:
        rate = self.luck.failures * self.fleet.workers
        self.after(self.chance.expovariate(rate), self._fail)

    def _fail(self) -> None:
        """End a worker; the server notices at once that its connection is closed."""
        self._fail_later()
        worker = self.chance.choice([each for each in self._workers.values() if each.alive])
        worker.alive = False
        del self._workers[worker.peer]
        self.server.arrive(PeerLost(worker.peer))
        self.after(self.luck.replaced_after, functools.partial(self._join, f"{worker.name}-again"))
