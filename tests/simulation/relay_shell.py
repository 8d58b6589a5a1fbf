"""One life of a relay: a client of what is above it, and a server to its clients below."""

import functools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from manychar.protocol.effects import ComputeFingerprint, Effect, Finish, Send
from manychar.protocol.events import (
    DeadlinePassed,
    FingerprintComputed,
    MailboxEmpty,
    Malformed,
    PeerError,
    PeerLost,
    Received,
)
from manychar.protocol.messages import Hello, Message, Peer, Welcome
from manychar.protocol.relay import Relay
from tests.simulation.moves import MovingMembership
from tests.simulation.network import decoded
from tests.simulation.relay_oracle import RelayOracle
from tests.simulation.transcript import brief, sent
from tests.simulation.worker_shell import WorkerShell

if TYPE_CHECKING:
    from tests.simulation.world import World

AS_RELAY = FingerprintComputed("relay", {}, 0.0)


class MovingRelay(Relay):
    """A relay whose members' ranges move at random."""

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        before, effects = self.below, super()._welcome(welcome, now)
        if self.below is not before:
            membership: Any = self.below.membership
            membership.__class__ = MovingMembership
            membership.chance = random.Random(self.below.spec.session)  # noqa: S311
        return effects


class RelayShell(WorkerShell):
    """Reads its mailbox from above as a worker does, and what comes from below at once."""

    def __init__(self, world: "World", name: str, instance: str) -> None:
        self._from_below: list[tuple[Peer, list[bytes]]] = []
        self.oracle = RelayOracle(world, name)
        super().__init__(world, name, instance, foreign=False)

    def machine_class(self) -> type[Any]:
        """Return the class of its machine."""
        moves = "moves" in self.world.plan.faults
        return MovingRelay if moves else self.world.relay_class

    def arrive_from_below(self, peer: Peer, frames: list[bytes]) -> None:
        """Let a message of a client lie in the mailbox until the thread comes to it."""
        self._from_below.append((peer, frames))
        self.wake()

    def unreachable(self, peer: Peer) -> None:
        """Tell the machine that a connection is gone."""
        if self.alive:
            self.carry_out(self.machine.handle(PeerLost(peer), self.world.now))

    def wake(self) -> None:
        """Read both mailboxes to their end, and tick."""
        if not self.is_free() or self._sleeps(self.wake):
            return
        machine, world = self.machine, self.world
        while self._mailbox and self.alive:
            self._receive(self._mailbox.popleft())
        below, self._from_below = self._from_below, []
        for peer, frames in below:
            if self.alive:
                self._receive_from_below(peer, frames)
        if not self.alive:
            return
        self.carry_out(machine.handle(MailboxEmpty(), world.now))
        self.carry_out(machine.handle(DeadlinePassed(), world.now))
        self.oracle.ticked(machine, world.now)
        deadline = machine.deadline()
        if self.alive and deadline is not None:
            self._wake_at(max(deadline, world.now + 0.01))

    def _receive(self, frames: list[bytes]) -> None:
        message = self._read(frames)
        self.world.log(lambda: f"    {self.name} reads: {brief(message)}")
        try:
            effects = self.machine.handle(Received(message), self.world.now)
        except PeerError as error:
            self.world.peer_error(error)
            return
        self.carry_out(effects)

    def _receive_from_below(self, peer: Peer, frames: list[bytes]) -> None:
        machine, world = self.machine, self.world
        if machine.dimensions is None and not isinstance(decoded(frames, world.dimensions), Hello):
            return  # a real relay cannot read it: the sizes are not known yet
        message = decoded(frames, world.dimensions)
        world.log(lambda: f"  {peer.decode()} -> {self.name}: {brief(message)}")
        self.oracle.before(machine, peer, message)
        try:
            effects = machine.handle(Received(message, peer), world.now)
        except PeerError as error:
            world.peer_error(error)
            effects = machine.handle(Malformed(peer, str(error)), world.now)
        self.oracle.after(machine, peer, message, effects)
        self.carry_out(effects)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the machine asks for: what goes down, too."""
        for effect in effects:
            match effect:
                case Send(message, to) if to is not None:
                    self._send_down(to, message)
                case Send(message):
                    self.oracle.sends_up(self.machine, message)
                    self._send(message)
                case ComputeFingerprint():
                    self.oracle.begins(self.machine)
                    self.carry_out(self.machine.handle(AS_RELAY, self.world.now))
                case Finish():
                    self._finish(effect)
                case _:
                    self.world.log(functools.partial(str, f"    {self.name}: {effect}"))

    def _send_down(self, peer: Peer, message: Message) -> None:
        world = self.world
        self.oracle.sends_down(self.machine, peer, message)
        world.log(functools.partial(sent, f"    {self.name} -> {peer.decode()}", message))
        world.network.send_down(peer, message)

    def _finish(self, finish: Finish) -> None:
        super()._finish(finish)
        self.world.relay_gone(self)

    def crash(self) -> None:
        """Be gone, at once."""
        super().crash()
        self.world.relay_gone(self)
