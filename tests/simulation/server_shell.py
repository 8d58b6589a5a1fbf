"""One life of the server process: its machine, its mailbox, and what the machine asks for."""

import collections
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from manychar.numerics.training_step import TrainingState
from manychar.protocol.effects import (
    Compute,
    Effect,
    Finish,
    Log,
    RememberBans,
    ResumeBefore,
    Save,
    Send,
    Validate,
)
from manychar.protocol.events import (
    DeadlinePassed,
    MailboxEmpty,
    Malformed,
    PeerError,
    PeerLost,
    Received,
    Started,
    StopRequested,
)
from manychar.protocol.member import OWN_PEER
from manychar.protocol.messages import Message, Peer
from manychar.protocol.run_operation import Operation
from manychar.protocol.run_spec import RunSpec
from tests.simulation.network import decoded
from tests.simulation.reference import compute
from tests.simulation.server_share import ServerShare
from tests.simulation.transcript import brief, sent
from tests.simulation.worker_shell import FINGERPRINT

if TYPE_CHECKING:
    from tests.simulation.world import World

RUN_NAME = "run"


class ServerShell:
    """One life of the server. Another begins after a crash, a stop, or to resume earlier."""

    def __init__(self, world: "World", state: TrainingState, term: int) -> None:
        self.world = world
        plan, known = world.plan, world.reference
        spec = RunSpec(
            run_id=RUN_NAME,
            term=term,
            definition=known.definition,
            operation=Operation(
                workers=1,
                compute=plan.computes,
                steps=plan.steps,
                checkpoint_every=plan.checkpoint_every,
                checkpoint_minutes=plan.silence / 60,
                sample_every=0,
                lease_timeout=plan.silence,
                stop_when_no_better=plan.patience,
            ),
            corpus=known.streams,
            vocabulary=known.vocabulary,
            state=state,
            fingerprint=FINGERPRINT,
            libraries={},
            banned=world.disk.banned,
            validation_losses=world.disk.validation_losses,
            unvalidated=world.disk.unvalidated(),
            session=world.chance.getrandbits(53),
        )
        self.machine = world.server_class(spec, now=world.now)
        world.servers += 1
        world.attach(f"server-{world.servers}", self.machine, spec=spec, now=world.now)
        self.applied_at = world.now
        self.share = ServerShare(world) if plan.computes else None
        self._to_compute: collections.deque[Compute] = collections.deque()
        self._resume: ResumeBefore | None = None
        self._stalled_until = 0.0
        self._mailbox: list[tuple[Peer, list[bytes]]] = []
        world.log(lambda: f"server starts: term {term}, step {state.step}")
        world.oracle.server_starts(self.machine, world.disk.newest().step, world.now)

    def is_alive(self) -> bool:
        """Whether this life goes on."""
        return self.world.server is self and not self.world.over

    def begin(self) -> None:
        """Do what the shell does first."""
        self.carry_out(self.machine.handle(Started(), self.world.now))
        if self.is_alive():
            self._tick()
        if self.share is not None:
            self.share.wake()

    def arrive(self, peer: Peer, frames: list[bytes]) -> None:
        """Read a message, at once unless the process stalls."""
        if self.world.now < self._stalled_until or self._mailbox:
            self._mailbox.append((peer, frames))
        elif self.is_alive():
            self.receive(peer, self._decoded(frames))

    def _decoded(self, frames: list[bytes]) -> Message:
        return decoded(frames, self.machine.dimensions, self.machine.expected_results)

    def receive(self, peer: Peer, message: Message) -> None:
        """Give the machine a message, and let the oracle check the effects."""
        machine, world = self.machine, self.world
        world.log(lambda: f"  {peer.decode()} -> server: {brief(message)}")
        before = world.oracle.before_server(machine, peer, message)
        step = machine.state.step
        try:
            effects = machine.handle(Received(message, peer), world.now)
        except PeerError as error:
            world.peer_error(error)
            effects = machine.handle(Malformed(peer, str(error)), world.now)
        if machine.state.step != step:
            self.applied_at = world.now
        world.oracle.after_server(machine, peer, message, before, effects)
        self.carry_out(effects)
        if self.is_alive():
            world.oracle.owes_ban(before)
            world.oracle.check_banned(machine)
            world.tell_the_truth()

    def _tick(self) -> None:
        if not self.is_alive():
            return
        now = self.world.now
        if now < self._stalled_until:
            self.world.after(self._stalled_until - now, self._tick)
            return
        mailbox, self._mailbox = self._mailbox, []
        for peer, frames in mailbox:
            if self.is_alive():
                self.receive(peer, self._decoded(frames))
        if self.is_alive():
            self._tick_now(now)

    def _tick_now(self, now: float) -> None:
        self.machine.handle(MailboxEmpty(), now)
        self.carry_out(self.machine.handle(DeadlinePassed(), now))
        if self.is_alive():
            self.world.oracle.server_ticked(self.machine, self.applied_at, now)
            deadline = self.machine.deadline()
            if deadline is not None:
                self.world.after(max(deadline - now, 0.01), self._tick)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the machine asks for."""
        for effect in effects:
            self._carry_out(effect)
        if self._resume is not None and self.is_alive():
            self.world.server_resumes(self._resume)

    def _carry_out(self, effect: Effect) -> None:
        world = self.world
        if isinstance(effect, Send):
            assert effect.to is not None
            to_share = effect.to == OWN_PEER
            world.oracle.lease_oracle.server_sends(effect.to, effect.message)
            world.log(functools.partial(sent, f"  server -> {effect.to.decode()}", effect.message))
            if not to_share:
                world.network.send_down(effect.to, effect.message)
            elif self.share is not None:
                self.share.arrive(effect.message)
        elif isinstance(effect, Compute):
            self._to_compute.append(effect)
            if len(self._to_compute) == 1:
                self._compute_later()
        elif isinstance(effect, Save):
            world.disk.save(self, effect)
        elif isinstance(effect, Validate):
            world.disk.validate(self, effect.step)
        elif isinstance(effect, Log):
            world.oracle.server_spoke(world.now)
            world.log(functools.partial(str, f"  server says: {effect.text}"))
        elif isinstance(effect, ResumeBefore):
            self._resume = effect
        elif isinstance(effect, RememberBans):
            world.disk.banned = dict(effect.banned)
        elif isinstance(effect, Finish):
            world.server_finished(effect)

    def _compute_later(self) -> None:
        seconds = self.world.plan.dispute_seconds * self.world.chance.random()
        self.world.after(seconds, self._compute)

    def _compute(self) -> None:
        """Compute one shard that is disputed."""
        if not self.is_alive():
            return
        effect = self._to_compute.popleft()
        piece = compute(effect, self.machine.dimensions)
        computed = piece.computed(effect.shard, effect.step)
        self.carry_out(self.machine.handle(computed, self.world.now))
        if self.is_alive():
            self.world.oracle.check_step(self.machine)
            self.world.oracle.check_banned(self.machine)
        if self._to_compute:
            self._compute_later()

    def unreachable(self, peer: Peer) -> None:
        """Tell the machine that a connection is gone."""
        if self.is_alive():
            self.carry_out(self.machine.handle(PeerLost(peer), self.world.now))

    def crash(self) -> None:
        """Be gone, at once."""
        self.world.server_crashed()

    def end(self) -> None:
        """Let its own share end with it."""
        if self.share is not None:
            self.share.alive = False

    def stall(self, seconds: float) -> None:
        """Do nothing for a while, and then go on."""
        self._stalled_until = self.world.now + seconds
        if self.share is not None:
            self.share.asleep_until = self._stalled_until

    def stop(self, within: float) -> None:
        """Take a SIGTERM."""
        now = self.world.now
        self.world.oracle.server_is_stopped(self.machine)
        self.carry_out(self.machine.handle(StopRequested(75, "stopped", now + within), now))
