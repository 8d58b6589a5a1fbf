"""A seeded world for the real machines: virtual time, a faulty network, a slow disk, bad luck.

Everything that happens is an event in one queue, in order of virtual time; everything by chance
comes from one generator. The same schedule gives the same run, event for event. Messages travel as
the bytes of the real codec; a frame is copied only when it arrives, as a socket without copies
would do it, so that writing into a version that is still being sent shows.

A worker's shell is that of one thread: it reads its mailbox between computations only, and beats
from between the pieces of a computation.
"""

import collections
import dataclasses
import functools
import heapq
import random
from collections.abc import Callable, Sequence

from manychar.numerics import State
from manychar.protocol import codec
from manychar.protocol.effects import (
    Compute,
    Effect,
    Finish,
    PeerError,
    Proof,
    Prove,
    Result,
    Save,
    Say,
    Send,
)
from manychar.protocol.messages import (
    WIRE_VERSION,
    Dimensions,
    Frame,
    Gradient,
    Hello,
    Message,
    Peer,
)
from manychar.protocol.run import Operation, Run
from manychar.protocol.server import ParameterServer
from manychar.protocol.worker import Worker
from tests.simulation.faults import Plan, Schedule, draw
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.reference import compute, reference

FINGERPRINT, FOREIGN_FINGERPRINT = "native", "foreign"
PATIENCE = 10_000.0
BOUND = 90.0
SUSPENDED_BOUND = 5_000.0
SUSPENDED_SECONDS = 70.0
RUN_NAME = "run"


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


class World:
    """One run, from its seed to its end. `events` counts; `transcript` is filled on request."""

    server_class: type[ParameterServer] = ParameterServer
    worker_class: type[Worker] = Worker

    def __init__(self, schedule: Schedule, *, transcript: list[str] | None = None) -> None:
        self.schedule = schedule
        self.plan: Plan = draw(schedule)
        self.chance = random.Random(f"world {schedule}")  # noqa: S311
        self.now = 0.0
        self.over = False
        self.peace = False
        self.transcript = transcript
        self.reference = reference(
            self.plan.shards, self.plan.streams, self.plan.delay, self.plan.length
        )
        self.oracle = Oracle(self.reference, self.plan)
        self.disk = Disk(self)
        self.server: ServerShell | None = None
        self.workers: list[WorkerShell] = []
        self.connections: dict[Peer, Connection] = {}
        self.waiting: list[tuple[Connection, list[Frame]]] = []
        self.broken: set[str] = set()
        self.term = 0
        self.peer_errors = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._names = 0

    # Time.

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let an event happen some seconds from now."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + seconds, self._order, event))

    def run(self) -> "World":
        """Run to the end; Violation where an invariant breaks."""
        self.start_server()
        for _ in range(self.plan.workers):
            self.after(self.chance.uniform(0, 0.5), self.join)
        for at, fault in self.plan.events:
            self.after(at, functools.partial(self._strike, fault))
        self.after(self.plan.peace_at, self._make_peace)
        bound = SUSPENDED_BOUND if "suspended" in self.plan.faults else BOUND
        end = self.plan.peace_at + bound
        while not self.over:
            self.now, _, event = heapq.heappop(self._queue)
            if self.now > end:
                step = self.server.machine.state.step if self.server else None
                raise Violation("stuck", f"at step {step} of {self.plan.steps} after {end:.0f} s")
            event()
        return self

    def log(self, text: Callable[[], str]) -> None:
        """Add a line to the transcript, if there is one."""
        if self.transcript is not None:
            self.transcript.append(f"{self.now:9.4f}  {text()}")

    # Faults.

    def _strike(self, fault: str) -> None:
        if not self.peace and not self.over:
            self.log(lambda: f"fault: {fault}")
            getattr(self, "_fault_" + fault.replace("-", "_"))()

    def _make_peace(self) -> None:
        """Nothing goes wrong from now on, and somebody is there to finish the run."""
        self.log(lambda: "peace")
        self.peace = True
        for worker in self.workers:
            worker.factor = 1.0
        self._keep_somebody()

    def _keep_somebody(self) -> None:
        if not any(worker.alive and not worker.foreign for worker in self.workers):
            self.join()
        self.after(1.0, self._keep_somebody)

    def _somebody(self) -> "WorkerShell | None":
        alive = [worker for worker in self.workers if worker.alive]
        return self.chance.choice(alive) if alive else None

    def _fault_partition(self) -> None:
        if worker := self._somebody():
            link = worker.connection
            link.cut_until = self.now + self.chance.uniform(0.3, 3 * self.plan.silence)
            link.cut_holds = self.chance.random() < 0.5

    def _fault_reconnect(self) -> None:
        if worker := self._somebody():
            self.connect(worker, keeps=self.chance.random() < 0.5, late=False)

    def _fault_slow(self) -> None:
        if worker := self._somebody():
            worker.factor = self.chance.uniform(5, 30)

    def _fault_hang(self) -> None:
        if worker := self._somebody():
            worker.asleep_until = self.now + self.chance.uniform(0.3, 4 * self.plan.silence)

    def _fault_worker_crash(self) -> None:
        if worker := self._somebody():
            worker.crash()
            if self.chance.random() < 0.6:
                again = functools.partial(self.join, worker.name)
                self.after(self.chance.choice((0.0, 0.3, 3.0)), again)

    def _fault_leave(self) -> None:
        if worker := self._somebody():
            worker.leave()

    def _fault_join(self) -> None:
        self.join()

    def _fault_foreign(self) -> None:
        self.join(foreign=True)

    def _fault_server_crash(self) -> None:
        if self.server is not None:
            self.server.crash()
            self.after(self.chance.choice((0.0, 0.3, 3.0)), self.start_server)

    def _fault_server_stall(self) -> None:
        if self.server is not None:
            self.server.stall(self.chance.uniform(0.3, 4 * self.plan.silence))

    def _fault_stop(self) -> None:
        if self.server is not None:
            self.server.stop(self.chance.uniform(0.1, 5.0))

    # Who is there.

    def join(self, name: str = "", *, foreign: bool = False) -> None:
        """Start a worker process."""
        if self.over:
            return
        self._names += 1
        worker = WorkerShell(self, name or f"w{self._names}", f"i{self._names}", foreign=foreign)
        self.workers.append(worker)
        self.connect(worker, keeps=True, late=False)
        worker.wake()

    def connect(self, worker: "WorkerShell", *, keeps: bool, late: bool) -> None:
        """Give a worker a new connection; what is under way on the old one is kept or lost."""
        connection = Connection(b"p%d" % (len(self.connections) + 1), worker)
        self.connections[connection.peer] = connection
        if (old := worker.connection_or_none) is not None:
            old.open, old.keeps = False, keeps
            old.successor = connection if late else None
            if late and not self.plan.disorder:
                connection.up_at, connection.down_at = old.up_at, old.down_at
        worker.connection_or_none = connection

    def start_server(self) -> None:
        """Start a server process: a new term, the newest checkpoint, new connections."""
        if self.over or self.server is not None:
            return
        self.term = self.next_term()
        self.server = ServerShell(self, self.restore(self.disk.newest()), self.term)
        self.server.begin()
        waiting, self.waiting = self.waiting, []
        for connection, frames in waiting:
            self.arrive_up(connection, frames)

    def next_term(self) -> int:
        """Return the term of a server that starts now; it is on disk before its first message."""
        return self.term + 1

    def restore(self, state: State) -> State:
        """Return the state that a checkpoint holds."""
        return state

    def server_crashed(self) -> None:
        """Break every connection; what was under way is lost, or comes late to the next server."""
        self.server = None
        for worker in self.workers:
            if worker.alive:
                late = self.chance.random() < 0.5
                self.connect(worker, keeps=late, late=late)

    def worker_gone(self, worker: "WorkerShell") -> None:
        """Close a worker's connection; what it sent last may still arrive."""
        worker.connection.open = False
        worker.connection.keeps = self.chance.random() < 0.7

    def peer_error(self, error: PeerError) -> None:
        """Let a peer's fault pass where a fault of the network explains it."""
        self.peer_errors += 1
        self.log(lambda: f"PeerError: {error}")
        if not self.plan.disorder:
            raise Violation("peer error", str(error))

    # The network.

    def send_up(self, worker: "WorkerShell", message: Message) -> None:
        """Send from a worker to the server."""
        link = worker.connection
        link.up_at = self._travel(
            message, link, link.up_at, functools.partial(self.arrive_up, link)
        )

    def send_down(self, peer: Peer, message: Message) -> None:
        """Send from the server to one of its connections, or notice that it is gone."""
        link = self.connections[peer]
        if link.open:
            link.down_at = self._travel(
                message, link, link.down_at, functools.partial(self.arrive_down, link)
            )
        elif self.plan.notices_disconnects:
            self.after(0.0, functools.partial(self._unreachable, peer))

    def _travel(
        self,
        message: Message,
        link: Connection,
        not_before: float,
        arrive: Callable[[list[Frame]], None],
    ) -> float:
        """Let a message travel; return when it arrives, which the next one may not overtake."""
        frames, plan = codec.encode(message), self.plan
        lost = self._happens(plan.loss) or (self.now < link.cut_until and not link.cut_holds)
        arrives = self.now + plan.latency * self.chance.uniform(0.5, 1.5)
        if self._happens(plan.held_up):
            arrives += self.chance.uniform(0, 2 * plan.silence)
        arrives = max(arrives, link.cut_until if not self.peace else 0.0, not_before)
        if self._happens(plan.shuffled):
            overtaken = arrives + self.chance.uniform(0, plan.silence)
            self.after(overtaken - self.now, functools.partial(arrive, frames))
            return not_before
        for _ in range(2 if self._happens(plan.duplication) else 1):
            if not lost:
                self.after(arrives - self.now, functools.partial(arrive, frames))
            arrives += self.chance.uniform(0, 0.1)
        return arrives if not plan.duplication else not_before

    def _happens(self, probability: float) -> bool:
        return probability > 0 and not self.peace and self.chance.random() < probability

    def arrive_up(self, link: Connection, frames: list[Frame]) -> None:
        """Hand a message to the server, or keep or lose it where there is none."""
        if not link.open:
            if not link.keeps:
                return
            link = link.successor or link
        if self.server is None:
            if link.keeps:
                self.waiting.append((link, frames))
            return
        received = [bytes(frame) for frame in frames]
        if self._happens(0.15) and "confused" in self.plan.faults:
            self._forge(link, received, confused=True)
        accepted = self.oracle.accepted_in_all
        self.server.arrive(link.peer, received)
        counted = self.oracle.accepted_in_all > accepted
        if counted and self._happens(0.3) and "differing-repeat" in self.plan.faults:
            again = functools.partial(self._forge, link, received, confused=False)
            self.after(self.chance.uniform(0, 3), again)

    def _forge(self, link: Connection, frames: list[bytes], *, confused: bool) -> None:
        """Let a gradient come that was computed from another state, or wrongly."""
        if self.server is None or self.peace:
            return
        message = codec.decode(frames, self.server.machine.dimensions)
        if isinstance(message, Gradient):
            wrong = dataclasses.replace(message, gradient=_flip(message.gradient))
            self.log(lambda: f"forged: {link.worker.name}, confused: {confused}")
            if not confused:
                self.broken.add(link.worker.name)
            if confused:
                by_version = self.chance.random() < 0.5
                wrong = dataclasses.replace(
                    wrong,
                    hidden_digest=wrong.hidden_digest if by_version else bytes(16),
                    version=wrong.version + by_version,
                )
            self.server.arrive(link.peer, [bytes(frame) for frame in codec.encode(wrong)])

    def arrive_down(self, link: Connection, frames: list[Frame]) -> None:
        """Put a message into a worker's mailbox."""
        if link.open or (link.keeps and link.successor is not None):
            link.worker.arrive([bytes(frame) for frame in frames])

    def _unreachable(self, peer: Peer) -> None:
        if self.server is not None:
            self.server.unreachable(peer)

    # Ends.

    def server_finished(self, finish: Finish) -> None:
        """Judge how the server ended; after a stop it is started again."""
        assert self.server is not None
        machine = self.server.machine
        self.log(lambda: f"server finishes: {finish}")
        if finish.code == 75:
            self.server_crashed()
            self.after(1.0, self.start_server)
            self.after(1.0, self.join)
            return
        if finish.code != 0 or machine.state.step != self.plan.steps:
            raise Violation("result", f"{finish} at step {machine.state.step}")
        self.oracle.check_state(machine.state, "result")
        if self.disk.newest().step != self.plan.steps:
            raise Violation("result", "the last checkpoint is not on disk")
        self.over = True


class Disk:
    """Where checkpoints go, one after the other; a crash loses those still under way."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.saved = {0: world.reference.states[0]}
        self._free_at = 0.0

    def newest(self) -> State:
        """Return the newest checkpoint."""
        return self.saved[max(self.saved)]

    def save(self, shell: "ServerShell", state: State) -> None:
        """Write a state, beside the loop; what is written is what it holds in the end."""
        world = self.world
        world.oracle.check_state(state, "checkpoint")
        begins = max(world.now, self._free_at)
        self._free_at = begins + world.plan.disk_seconds * world.chance.uniform(0.2, 1.5)
        world.after(self._free_at - world.now, functools.partial(self._written, shell, state))

    def _written(self, shell: "ServerShell", state: State) -> None:
        if self.world.server is not shell:
            self._free_at = 0.0
            return
        self.world.oracle.check_state(state, "checkpoint")
        self.saved[state.step] = _copy(state)
        self.world.log(lambda: f"checkpoint {state.step} is on disk")
        shell.carry_out(shell.machine.saved(state.step))


def _copy(state: State) -> State:
    return dataclasses.replace(
        state,
        parameters=state.parameters.like(state.parameters.flat.copy()),
        memory=state.memory.copy(),
        hidden=state.hidden.copy(),
        previous=tuple(version.copy() for version in state.previous),
    )


class ServerShell:
    """One life of the server process."""

    def __init__(self, world: World, state: State, term: int) -> None:
        self.world = world
        plan, known = world.plan, world.reference
        run = Run(
            run=RUN_NAME,
            term=term,
            definition=known.definition,
            operation=Operation(
                steps=plan.steps,
                checkpoint_every=plan.checkpoint_every,
                sample_every=0,
                silence=plan.silence,
            ),
            streams=known.streams,
            vocabulary=known.vocabulary,
            state=state,
            fingerprint=FINGERPRINT,
            libraries={},
        )
        self.machine = world.server_class(run, now=world.now)
        self.applied_at = world.now
        self._stalled_until = 0.0
        self._mailbox: list[tuple[Peer, list[bytes]]] = []
        world.log(lambda: f"server starts: term {term}, step {state.step}")
        world.oracle.server_starts(self.machine, world.disk.newest().step, world.now)

    @property
    def alive(self) -> bool:
        """Whether this life goes on."""
        return self.world.server is self and not self.world.over

    def begin(self) -> None:
        """Do what the shell does first."""
        self.carry_out(self.machine.begin(self.world.now))
        if self.alive:
            self._tick()

    def arrive(self, peer: Peer, frames: list[bytes]) -> None:
        """Read a message, at once unless the process stalls."""
        if self.world.now < self._stalled_until or self._mailbox:
            self._mailbox.append((peer, frames))
        elif self.alive:
            self._receive(peer, frames)

    def _receive(self, peer: Peer, frames: list[bytes]) -> None:
        machine, world = self.machine, self.world
        message = decoded(frames, machine.dimensions)
        world.log(lambda: f"  {peer.decode()} -> server: {brief(message)}")
        before = world.oracle.before_server(machine, peer, message)
        step = machine.state.step
        try:
            effects = machine.receive(peer, message, world.now)
        except PeerError as error:
            world.peer_error(error)
            effects = machine.malformed(peer, str(error))
        except Violation:
            raise
        except Exception as error:
            raise Violation("exception", f"server: {error!r}") from error
        if machine.state.step != step:
            self.applied_at = world.now
        world.oracle.after_server(machine, peer, message, before, effects)
        self.carry_out(effects)

    def _tick(self) -> None:
        if not self.alive:
            return
        now = self.world.now
        if now < self._stalled_until:
            self.world.after(self._stalled_until - now, self._tick)
            return
        mailbox, self._mailbox = self._mailbox, []
        for peer, frames in mailbox:
            if self.alive:
                self._receive(peer, frames)
        if not self.alive:
            return
        try:
            effects = self.machine.tick(now)
        except Exception as error:
            raise Violation("exception", f"server: {error!r}") from error
        self.carry_out(effects)
        if self.alive:
            self.world.oracle.server_ticked(self.machine, self.applied_at, now)
            deadline = self.machine.deadline()
            if deadline is not None:
                self.world.after(max(deadline - now, 0.01), self._tick)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the machine asks for."""
        world = self.world
        for effect in effects:
            if isinstance(effect, Send):
                assert effect.to is not None
                message, to = effect.message, effect.to
                world.oracle.server_sends(to, message, world.now)
                world.log(functools.partial(_sent, f"  server -> {to.decode()}", message))
                world.send_down(to, message)
            elif isinstance(effect, Compute):
                piece = compute(effect, self.machine.dimensions)
                result = Result(piece.loss, piece.gradient, piece.hidden, 0.0)
                self.carry_out(self.machine.computed(effect.shard, effect.step, result, world.now))
            elif isinstance(effect, Save):
                world.disk.save(self, effect.state)
            elif isinstance(effect, Say):
                world.oracle.server_spoke(world.now)
                world.log(functools.partial(str, f"  server says: {effect.text}"))
            elif isinstance(effect, Finish):
                world.server_finished(effect)

    def unreachable(self, peer: Peer) -> None:
        """Tell the machine that a connection is gone."""
        if self.alive:
            self.carry_out(self.machine.unreachable(peer, self.world.now))

    def crash(self) -> None:
        """Be gone, at once."""
        self.world.server_crashed()

    def stall(self, seconds: float) -> None:
        """Do nothing for a while, and then go on."""
        self._stalled_until = self.world.now + seconds

    def stop(self, within: float) -> None:
        """Take a SIGTERM."""
        now = self.world.now
        self.carry_out(self.machine.stop(75, "stopped", now=now, by=now + within))


class WorkerShell:
    """One life of a worker process: one thread, one machine, one connection at a time."""

    def __init__(self, world: World, name: str, instance: str, *, foreign: bool) -> None:
        self.world = world
        self.name = name
        self.foreign = foreign
        self.alive = True
        self.factor = 1.0
        self.asleep_until = 0.0
        self.connection_or_none: Connection | None = None
        self._busy = False
        self._woken_at = -1.0
        self._mailbox: collections.deque[list[bytes]] = collections.deque()
        hello = Hello(wire=WIRE_VERSION, role="worker", name=name, instance=instance, machine={})
        self.machine = world.worker_class(hello, server="there", patience=PATIENCE, now=world.now)

    @property
    def connection(self) -> Connection:
        """The connection it has now."""
        assert self.connection_or_none is not None
        return self.connection_or_none

    def arrive(self, frames: list[bytes]) -> None:
        """Let a message lie in the mailbox until the thread comes to it."""
        if self.alive:
            self._mailbox.append(frames)
            if not self._busy:
                self.wake()

    def wake(self) -> None:
        """Read the mailbox to its end, tick, and take up a unit, as the real loop does."""
        if not self.alive or self._busy or self._sleeps(self.wake):
            return
        machine, now = self.machine, self.world.now
        while self._mailbox:
            self._receive(self._mailbox.popleft())
            if not self.alive or self._busy:
                return
        self.carry_out(self._guarded(lambda: machine.tick(now)))
        self.carry_out(self._guarded(lambda: machine.mailbox_empty(now)))
        deadline = machine.deadline()
        if self.alive and not self._busy and deadline is not None:
            self._wake_at(max(deadline, now + 0.01))

    def _wake_at(self, at: float) -> None:
        if not self.world.now < self._woken_at <= at:
            self._woken_at = at
            self.world.after(at - self.world.now, self.wake)

    def _sleeps(self, later: Callable[[], None]) -> bool:
        """Whether the process hangs; then `later` is done when it goes on."""
        if self.world.now >= self.asleep_until:
            return False
        self.world.after(self.asleep_until - self.world.now, later)
        return True

    def _receive(self, frames: list[bytes]) -> None:
        machine, world = self.machine, self.world
        message = decoded(frames, machine.dimensions)
        world.log(lambda: f"    {self.name} reads: {brief(message)}")
        before = world.oracle.before_worker(machine, message)
        try:
            effects = machine.receive(message, world.now)
        except PeerError as error:
            world.peer_error(error)
            return
        except Exception as error:
            raise Violation("exception", f"worker: {error!r}") from error
        world.oracle.after_worker(machine, message, before, effects)
        self.carry_out(effects)

    def _guarded(self, event: Callable[[], list[Effect]]) -> list[Effect]:
        try:
            return event()
        except Exception as error:
            raise Violation("exception", f"worker: {error!r}") from error

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the machine asks for."""
        world = self.world
        for effect in effects:
            if isinstance(effect, Send):
                if not self.foreign:
                    world.oracle.worker_sends(effect.message)
                world.log(functools.partial(_sent, f"    {self.name} sends", effect.message))
                world.send_up(self, effect.message)
            elif isinstance(effect, Prove):
                self._be_busy(world.chance.uniform(0.0, 0.2), self._prove())
            elif isinstance(effect, Compute):
                self._compute(effect)
            elif isinstance(effect, Say):
                world.log(functools.partial(str, f"    {self.name} says: {effect.text}"))
            elif isinstance(effect, Finish):
                self._finish(effect)

    def _prove(self) -> Callable[[], list[Effect]]:
        fingerprint = FOREIGN_FINGERPRINT if self.foreign else FINGERPRINT
        proof = Proof(fingerprint, {}, 0.0)
        return lambda: self.machine.proved(proof, self.world.now)

    def _compute(self, unit: Compute) -> None:
        world = self.world
        world.log(lambda: f"    {self.name} computes step {unit.step}, shard {unit.shard}")
        if not self.foreign:
            world.oracle.worker_computes(self.machine, unit)
        assert self.machine.dimensions is not None
        piece = compute(unit, self.machine.dimensions)
        gradient = _flip(piece.gradient) if self.foreign else piece.gradient
        seconds = world.plan.unit_seconds * world.chance.uniform(0.5, 1.5) * self.factor
        if "suspended" in world.plan.faults:
            seconds = SUSPENDED_SECONDS
        result = Result(piece.loss, gradient, piece.hidden, 0.0)
        self._be_busy(seconds, lambda: self.machine.computed(result, world.now))

    def _be_busy(self, seconds: float, through: Callable[[], list[Effect]]) -> None:
        """Compute: the thread beats from time to time, and reads nothing until it is through."""
        self._busy = True
        self.world.after(seconds, functools.partial(self._through, through))
        if "suspended" not in self.world.plan.faults:
            self._beat()

    def _beat(self) -> None:
        if self.alive and self._busy:
            world = self.world
            if world.now >= self.asleep_until:
                self.carry_out(self._guarded(lambda: self.machine.beat(world.now)))
            world.after(world.plan.silence / 5, self._beat)

    def _through(self, through: Callable[[], list[Effect]]) -> None:
        if not self.alive or self._sleeps(functools.partial(self._through, through)):
            return
        self._busy = False
        self.carry_out(self._guarded(through))
        self.wake()

    def _finish(self, finish: Finish) -> None:
        self.world.log(lambda: f"    {self.name} finishes: {finish}")
        self.alive = False
        self.world.worker_gone(self)
        if finish.code != 0 and not self.foreign and self.name not in self.world.broken:
            raise Violation("refused", f"{self.name}, which is healthy: {finish.reason}")

    def crash(self) -> None:
        """Be gone, at once."""
        self.alive = False
        self.world.worker_gone(self)

    def leave(self) -> None:
        """Take a SIGTERM."""
        self.carry_out(self._guarded(lambda: self.machine.leave("told to")))


def decoded(frames: list[bytes], size: Dimensions | None) -> Message:
    """Return the message; what our own machines send is never malformed."""
    try:
        return codec.decode(frames, size)
    except codec.WireError as error:
        raise Violation("wire", str(error)) from error


def _sent(who: str, message: Message) -> str:
    return f"{who}: {brief(message)}"


def _flip(frame: Frame) -> bytes:
    """Return other bytes: the lowest bit of the first number."""
    changed = bytearray(frame)
    changed[0] ^= 1
    return bytes(changed)


def brief(message: Message) -> str:
    """Return one line for a transcript."""
    fields = {
        field.name: getattr(message, field.name)
        for field in dataclasses.fields(message)
        if field.name not in ("run", "dimensions", "ids", "hidden_digest", "machine", "libraries")
    }
    shown = {
        name: value
        for name, value in fields.items()
        if not isinstance(value, bytes | bytearray | memoryview)
    }
    return f"{type(message).__name__}({', '.join(f'{k}={v}' for k, v in shown.items())})"
