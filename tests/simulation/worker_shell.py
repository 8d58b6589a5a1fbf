"""One life of a worker process: a shell of one thread, as the real one is.

It reads its mailbox between computations only, and sends heartbeats from within them.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from manychar.protocol.effects import (
    STOPPED,
    Compute,
    ComputeFingerprint,
    Effect,
    Finish,
    Log,
    Send,
)
from manychar.protocol.events import (
    Computed,
    DeadlinePassed,
    FingerprintComputed,
    HeartbeatDue,
    LeaveRequested,
    MailboxEmpty,
    PeerError,
    Received,
)
from manychar.protocol.messages import (
    WIRE_VERSION,
    Grant,
    Hello,
    Message,
    NewWeights,
    Revoke,
    UnitResult,
)
from manychar.protocol.worker import Worker
from tests.simulation.faults import FACTORS
from tests.simulation.network import Connection, decoded, spoiled
from tests.simulation.reference import compute
from tests.simulation.transcript import brief, sent
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

FINGERPRINT, FOREIGN_FINGERPRINT = "native", "foreign"
CONNECT_TIMEOUT = 10_000.0
SUSPENDED_SECONDS = 70.0
OF_LEASES = (Grant, NewWeights, Revoke)


class WorkerShell:
    """One machine, one connection at a time.

    `foreign` has other arithmetic and says so; `spoils` says of a shard whether it is computed
    wrongly. A worker is slower than others by `speed`, and by `factor` for a while. `_life` rises
    where what is being computed is abandoned.
    """

    def __init__(self, world: "World", name: str, instance: str, *, foreign: bool) -> None:
        self.world = world
        self.name = name
        self.foreign = foreign
        self.spoils: Callable[[Compute], bool] = lambda _: foreign
        self.alive = True
        self.speed = world.chance.choice(FACTORS)
        self.factor = 1.0
        self.asleep_until = 0.0
        self.connection_or_none: Connection | None = None
        self._busy = False
        self._computing = False
        self._life = 0
        self._woken_at = -1.0
        self._mailbox: collections.deque[list[bytes]] = collections.deque()
        hello = Hello(wire=WIRE_VERSION, role="worker", name=name, instance=instance, machine={})
        self.above = world.above(name)
        self.machine: Any = self.machine_class()(
            hello, server="there", connect_timeout=CONNECT_TIMEOUT, now=world.now
        )
        world.attach(
            f"{name}-{instance}",
            self.machine,
            hello=hello,
            server="there",
            connect_timeout=CONNECT_TIMEOUT,
            now=world.now,
        )

    def machine_class(self) -> type[Worker]:
        """Return the class of its machine."""
        return self.world.worker_class

    @property
    def connection(self) -> Connection:
        """The connection it has now."""
        assert self.connection_or_none is not None
        return self.connection_or_none

    def arrive(self, frames: list[bytes]) -> None:
        """Let a message lie in the mailbox until the thread comes to it."""
        if not self.alive:
            return
        if self._hears_now() and isinstance(decoded(frames, self.machine.dimensions), OF_LEASES):
            self._receive(frames)
            return
        self._mailbox.append(frames)
        if not self._busy:
            self.wake()

    def _hears_now(self) -> bool:
        """Whether this shell hears of leases while it computes, as one with a second thread."""
        awake = self.world.now >= self.asleep_until
        return self.world.plan.attentive and self._computing and awake and not self._mailbox

    def is_free(self) -> bool:
        """Whether the thread lives and does not compute."""
        return self.alive and not self._busy

    def wake(self) -> None:
        """Read the mailbox to its end, tick, and take up a unit, as the real loop does."""
        if not self.is_free() or self._sleeps(self.wake):
            return
        machine, now = self.machine, self.world.now
        while self._mailbox and self.is_free():
            self._receive(self._mailbox.popleft())
        if not self.is_free():
            return
        self.carry_out(machine.handle(DeadlinePassed(), now))
        self.carry_out(machine.handle(MailboxEmpty(), now))
        deadline = machine.deadline()
        if self.is_free() and deadline is not None:
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
        message = self._read(frames)
        world.log(lambda: f"    {self.name} reads: {brief(message)}")
        before = world.worker_oracle.before(machine, message)
        try:
            effects = machine.handle(Received(message), world.now)
        except PeerError as error:
            world.peer_error(error)
            return
        world.worker_oracle.after(machine, message, before, effects)
        self.carry_out(effects)

    def _read(self, frames: list[bytes]) -> Message:
        return decoded(frames, self.machine.dimensions, self.machine.expected_weights)

    def _send(self, message: Message) -> None:
        self.world.log(functools.partial(sent, f"    {self.name} sends", message))
        self.world.network.send_up(self, message)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the machine asks for."""
        world = self.world
        for effect in effects:
            if isinstance(effect, Send):
                if isinstance(effect.message, UnitResult) and not self.foreign:
                    world.worker_oracle.sends(self.name, effect.message)
                self._send(effect.message)
            elif isinstance(effect, ComputeFingerprint):
                self._be_busy(world.chance.uniform(0.0, 0.2), self._prove())
            elif isinstance(effect, Compute):
                self._compute(effect)
            elif isinstance(effect, Log):
                world.log(functools.partial(str, f"    {self.name} says: {effect.text}"))
            elif isinstance(effect, Finish):
                self._finish(effect)

    def _prove(self) -> Callable[[], list[Effect]]:
        fingerprint = FOREIGN_FINGERPRINT if self.foreign else FINGERPRINT
        computed = FingerprintComputed(fingerprint, {}, 0.0)

        def proven() -> list[Effect]:
            effects: list[Effect] = self.machine.handle(computed, self.world.now)
            return effects

        return proven

    def _compute(self, unit: Compute) -> None:
        world = self.world
        world.log(lambda: f"    {self.name} computes step {unit.step}, shard {unit.shard}")
        if not self.foreign:
            world.worker_oracle.computes(self.machine, unit)
        seconds = world.plan.shard_seconds * world.chance.uniform(0.5, 1.5)
        seconds *= self.speed * self.factor
        if "suspended" in world.plan.faults:
            seconds = SUSPENDED_SECONDS
        result = self._result(unit, seconds)
        self._computing = True
        delivers = world.worker_oracle.must_deliver(self.machine, unit)

        def through() -> list[Effect]:
            effects: list[Effect] = self.machine.handle(result, world.now)
            if delivers():
                world.worker_oracle.delivered(effects, unit)
            return effects

        self._be_busy(seconds, through)

    def _result(self, unit: Compute, seconds: float) -> Computed:
        """Compute a shard, rightly or wrongly."""
        assert self.machine.dimensions is not None
        piece = compute(unit, self.machine.dimensions)
        if self.spoils(unit):
            self.world.log(lambda: f"    {self.name} computes it wrongly")
            piece = spoiled(piece, self.world.chance)
        return piece.computed(unit.shard, unit.step, seconds=seconds, longest_piece=0.0)

    def _be_busy(self, seconds: float, through: Callable[[], list[Effect]]) -> None:
        """Compute: the thread sends heartbeats, and reads nothing until it is through."""
        self._busy = True
        self.world.after(seconds, functools.partial(self._through, self._life, through))
        if "suspended" not in self.world.plan.faults:
            self._heartbeat()

    def _heartbeat(self) -> None:
        if self.alive and self._busy:
            world = self.world
            if world.now >= self.asleep_until:
                self.carry_out(self.machine.handle(HeartbeatDue(), world.now))
            world.after(world.plan.silence / 5, self._heartbeat)

    def _through(self, life: int, through: Callable[[], list[Effect]]) -> None:
        if not self.alive or life != self._life:
            return
        if self._sleeps(functools.partial(self._through, life, through)):
            return
        self._busy = self._computing = False
        self.carry_out(through())
        self.wake()

    def _finish(self, finish: Finish) -> None:
        self.world.log(lambda: f"    {self.name} finishes: {finish}")
        self.alive = False
        self.world.worker_gone(self)
        if (
            finish.code not in (0, STOPPED)
            and not self.foreign
            and self.name not in self.world.broken
        ):
            raise Violation("refused", f"{self.name}, which is healthy: {finish.reason}")

    def crash(self) -> None:
        """Be gone, at once."""
        self.alive = False
        self.world.worker_gone(self)

    def leave(self) -> None:
        """Take a SIGTERM."""
        self.carry_out(self.machine.handle(LeaveRequested(0, "told to"), self.world.now))
