"""A seeded world for the real machines: virtual time, a faulty network, a slow disk, bad luck.

Everything that happens is an event in one queue, in order of virtual time; everything by chance
comes from one generator. The same schedule gives the same run, event for event. Messages travel as
the bytes of the real codec.
"""

import functools
import heapq
import math
import random
from collections.abc import Callable

from manychar.numerics.training_step import TrainingState
from manychar.protocol.counters import Counter
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.effects import Compute, Finish, ResumeBefore
from manychar.protocol.events import PeerError
from manychar.protocol.lifecycle import RunPhase
from manychar.protocol.member import OWN_PEER, Member, PeerState
from manychar.protocol.messages import UnitResult
from manychar.protocol.relay import Relay
from manychar.protocol.run_spec import dimensions_of
from manychar.protocol.server import ParameterServer
from manychar.protocol.worker import Worker
from tests.simulation.disk import Disk
from tests.simulation.faults import Plan, Schedule, draw
from tests.simulation.moves import MovingServer
from tests.simulation.network import Connection, Network
from tests.simulation.oracle import Oracle
from tests.simulation.reference import reference
from tests.simulation.relay_shell import RelayShell
from tests.simulation.server_shell import ServerShell
from tests.simulation.violation import Violation
from tests.simulation.worker_oracle import WorkerOracle
from tests.simulation.worker_shell import WorkerShell

BOUND = 90.0
SUSPENDED_BOUND = 5_000.0
LEAST_PATIENCE = 1.0
AT_ONCE = 10_000  # events


class World:
    """One run, from its seed to its end; `transcript` is filled on request; `attach` is
    told of each machine, and what it is made of.

    `broken` names the workers that compute wrongly; `times_resumed` counts the earlier resumes.
    """

    server_class: type[ParameterServer] = ParameterServer
    worker_class: type[Worker] = Worker
    relay_class: type[Relay] = Relay

    def __init__(
        self,
        schedule: Schedule,
        *,
        transcript: list[str] | None = None,
        attach: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self.schedule = schedule
        self.plan: Plan = draw(schedule)
        self.chance = random.Random(f"world {schedule}")  # noqa: S311
        self.now = 0.0
        self.over = False
        self.peace = False
        self.transcript = transcript
        self.attach = attach
        self.reference = reference(self.plan.shards, self.plan.streams, self.plan.length)
        self.broken: set[str] = set()
        self.end = self._where_it_ends()
        if "moves" in self.plan.faults:
            self.server_class = MovingServer
        self.oracle = Oracle(self)
        self.worker_oracle = WorkerOracle(
            self.oracle, disorder=self.plan.disorder, at_ease=self.plan.faults <= {"moves"}
        )
        self.network = Network(self)
        self.disk = Disk(self)
        self.server: ServerShell | None = None
        self.workers: list[WorkerShell] = []
        self.relays: dict[str, RelayShell] = {}
        self._above: dict[str, str] = {}
        self.times_resumed = 0
        self.wrong_begun = False
        self._told: UnitResult | None = None
        self.term = 0
        self.servers = 0
        self.peer_errors = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._names = 0

    def loss_at(self, step: int) -> float:
        """Return the validation loss of a checkpoint."""
        return random.Random(f"loss {self.schedule} {step}").random()  # noqa: S311

    def _where_it_ends(self) -> int:
        """Return the step at which the run must end: each decision takes effect one later."""
        every, best, best_at = self.plan.checkpoint_every, math.inf, 0
        for step in range(0, self.plan.steps, every):
            if self.loss_at(step) < best:
                best, best_at = self.loss_at(step), step
            if self.plan.patience and (step - best_at) // every >= self.plan.patience:
                return min(step + every, self.plan.steps)
        return self.plan.steps

    # Time.

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let an event happen some seconds from now."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + seconds, self._order, event))

    def run(self) -> "World":
        """Run to the end; Violation where an invariant breaks."""
        self.start_server()
        if "broken" in self.plan.faults:
            self.broken.add("w1")
        for number in range(self.plan.relays):
            self.after(self.chance.uniform(0, 0.5), functools.partial(self.join, f"r{number}"))
        for _ in range(self.plan.workers):
            self.after(self.chance.uniform(0, 0.5), self.join)
        for at, fault in self.plan.events:
            self.after(at, functools.partial(self._strike, fault))
        self.after(self.plan.peace_at, self._make_peace)
        bound = SUSPENDED_BOUND if "suspended" in self.plan.faults else BOUND
        end = self.plan.peace_at + bound
        at_once = 0
        while not self.over:
            before = self.now
            self.now, _, event = heapq.heappop(self._queue)
            at_once = at_once + 1 if self.now == before else 0
            if self.now > end or at_once > AT_ONCE:
                step = self.server.machine.state.step if self.server else None
                raise Violation(
                    "stuck", f"at step {step} of {self.plan.steps} after {self.now:.0f} s"
                )
            self._happen(event)
        return self

    def _happen(self, event: Callable[[], None]) -> None:
        try:
            event()
        except Violation:
            raise
        except Exception as error:
            raise Violation("exception", repr(error)) from error

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
        for number in range(self.plan.relays):
            if not self.relays[f"r{number}"].alive:
                self.join(f"r{number}")
        if not any(
            worker.alive and not worker.foreign and worker.name not in self.relays
            for worker in self.workers
        ):
            self.join()
        self.after(1.0, self._keep_somebody)

    def _somebody(self) -> WorkerShell | None:
        alive = [worker for worker in self.workers if worker.alive]
        return self.chance.choice(alive) if alive else None

    def _fault_partition(self) -> None:
        if worker := self._somebody():
            link = worker.connection
            link.cut_until = self.now + self.chance.uniform(0.3, 3 * self.plan.silence)
            link.cut_holds = self.chance.random() < 0.5

    def _fault_reconnect(self) -> None:
        if worker := self._somebody():
            self.network.connect(worker, keeps=self.chance.random() < 0.5, late=False)

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

    def _fault_copied(self) -> None:
        """Crash; the next server is of a copy of the run's directory, with the same term."""
        if self.server is not None:
            self.term -= 1
            self._fault_server_crash()

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
        if name in self.relays and self.relays[name].alive:
            return
        self._names += 1
        if name.startswith("r"):
            worker: WorkerShell = RelayShell(self, name, f"i{self._names}")
            self.relays[name] = worker  # type: ignore[assignment]
        else:
            new = f"w{self._names}"
            worker = WorkerShell(self, name or new, f"i{self._names}", foreign=foreign)
        if "broken" in self.plan.faults and worker.name in self.broken:
            worker.spoils = self._spoils_once()
        self.workers.append(worker)
        self.network.connect(worker, keeps=True, late=False)
        worker.wake()

    # Relays.

    @property
    def dimensions(self) -> Dimensions:
        """The sizes of the run."""
        return dimensions_of(self.reference.definition, len(self.reference.vocabulary))

    def above(self, name: str) -> str:
        """Return the relay that a client connects to, at all times; nothing is the server."""
        if name not in self._above:
            number = int(name[1:]) if name.startswith("r") else self.plan.relays
            relays = [f"r{each}" for each in range(min(number, self.plan.relays))]
            at_server = not relays or self.chance.random() < 0.3
            self._above[name] = "" if at_server else self.chance.choice(relays)
        return self._above[name]

    def arrive_at_relay(self, link: Connection, frames: list[bytes]) -> None:
        """Hand a message to a relay; it is lost where there is none."""
        relay = self.relays.get(link.worker.above)
        if relay is not None and relay.alive:
            relay.arrive_from_below(link.peer, frames)

    def relay_gone(self, relay: RelayShell) -> None:
        """Break the connections of its clients, which connect again."""
        for worker in self.workers:
            if worker.alive and worker.above == relay.name:
                self.network.connect(worker, keeps=self.chance.random() < 0.5, late=False)

    def start_server(self) -> None:
        """Start a server process: a new term, the newest checkpoint, new connections."""
        if self.over or self.server is not None:
            return
        self.term = self.next_term()
        self.disk.recover()
        self.server = ServerShell(self, self.restore(self.disk.newest()), self.term)
        self.server.begin()
        self.network.bound()

    def next_term(self) -> int:
        """Return the term of a server that starts now; it is on disk before its first message."""
        return self.term + 1

    def restore(self, state: TrainingState) -> TrainingState:
        """Return the state that a checkpoint holds."""
        return state

    def server_crashed(self) -> None:
        """Break every connection; what was under way is lost, or comes late to the next server."""
        assert self.server is not None
        self.server.end()
        self.server = None
        for worker in self.workers:
            if worker.alive and not worker.above:
                late = self.chance.random() < 0.5
                self.network.connect(worker, keeps=late, late=late)

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

    # A broken worker.

    def _spoils_once(self) -> Callable[[Compute], bool]:
        """Have a worker compute one shard wrongly, once another is there to tell."""

        def spoils(unit: Compute) -> bool:
            if self.wrong_begun or unit.step < self.plan.wrong_from or not self._healthy():
                return False
            self.wrong_begun = True
            return True

        return spoils

    def _healthy(self) -> list[Member]:
        """Return the workers of other machines that are not broken."""
        members = self.server.machine.membership.members.values() if self.server else ()
        ready = (PeerState.WORKING, PeerState.SILENT)
        return [
            m
            for m in members
            if m.state in ready and m.name not in self.broken and m.peer != OWN_PEER
        ]

    def tell_the_truth(self) -> None:
        """Some steps after a wrong result was counted, let another's right one come."""
        wrong, healthy = self.oracle.wrong, self._healthy()
        if wrong is None or wrong is self._told or self.server is None or not healthy:
            return
        machine = self.server.machine
        due = min(wrong.step + self.plan.truth_after, self.end - 1)
        if machine.lifecycle.phase is RunPhase.TRAINING and machine.state.step < due:
            return
        self._told = wrong
        right = self.reference.result(wrong, wrong.step, wrong.first, wrong.last)
        self.server.receive(healthy[0].peer, right)

    def server_resumes(self, effect: ResumeBefore) -> None:
        """Let the server remember what it was told and end; the next one resumes earlier."""
        self.log(lambda: f"server executes itself again: {effect}")
        self.oracle.resumes(effect, self.disk.banned)
        self.times_resumed += 1
        self.disk.resume_before = effect.step
        self.server_crashed()
        self.after(self.chance.choice((0.0, 0.3, 3.0)), self.start_server)
        for name in self.disk.banned:
            self.after(1.0, functools.partial(self.join, name))

    # Ends.

    def server_finished(self, finish: Finish) -> None:
        """Check how the server ended; after a stop it is started again."""
        assert self.server is not None
        machine = self.server.machine
        self.log(lambda: f"server finishes: {finish}")
        if finish.code == 75:
            self.server_crashed()
            self.after(1.0, self.start_server)
            self.after(1.0, self.join)
            return
        if self.broken and self.plan.computes and "cannot tell" in finish.reason:
            self.over = True  # its own share and a broken worker differ
            return
        if finish.code != 0:
            raise Violation("result", f"{finish} at step {machine.state.step}")
        if machine.state.step != self.end:
            raise Violation("end", f"{finish} at step {machine.state.step}, not at {self.end}")
        self.oracle.check_result(machine.state, "result")
        if self.disk.newest().step != self.end:
            raise Violation("result", "the last checkpoint is not on disk")
        at_ease = self.worker_oracle.at_ease and self.plan.answers_within < LEAST_PATIENCE
        if at_ease and machine.counts[Counter.GRANTS_RESENT]:
            raise Violation(
                "asked again", f"{machine.counts[Counter.GRANTS_RESENT]} times, for no reason"
            )
        self.over = True
