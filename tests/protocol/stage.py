"""A server on a stage: tests say who speaks, and look at what the machine does about it.

Peers are called by name, time stands still unless a test moves it, and every result comes from
the single process's run, so that a story needs no numbers of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from manychar.numerics.tree_reduction import Range, cover
from manychar.protocol.effects import Compute, Effect, Log, Send
from manychar.protocol.events import Computed, DeadlinePassed, Received, Started
from manychar.protocol.member import Member
from manychar.protocol.messages import (
    WIRE_VERSION,
    Frame,
    Heartbeat,
    Hello,
    Message,
    Ready,
    RunAndTerm,
    Status,
    Unit,
    UnitResult,
)
from manychar.protocol.run_operation import Operation
from manychar.protocol.run_spec import RunSpec, dimensions_of
from manychar.protocol.server import ParameterServer
from manychar.protocol.unit_payload import Payload, equal_parts, folded_digest
from tests.simulation.reference import Reference, compute, reference

RUN, TERM, SESSION, FINGERPRINT = "run-1", 3, 7, "the-runs"
IN_RUN: RunAndTerm = {"run_id": RUN, "term": TERM, "session": SESSION}
LIBRARIES = {"blas": "OpenBLAS Haswell", "numpy": "2.4.0"}

Kind = TypeVar("Kind")


class Stage:
    """A server of a tiny run; keyword arguments go into its Operation.

    Its checkpoints are validated if `validation_losses` are given, even none.
    """

    def __init__(
        self,
        *,
        shards: int = 2,
        step: int = 0,
        banned: Mapping[str, str] | None = None,
        validation_losses: Mapping[int, float] | None = None,
        unvalidated: tuple[int, ...] = (),
        started_workers: int = 0,
        **operation: Any,
    ) -> None:
        self.now = 0.0
        self.known = reference(shards, 1, 11)
        defaults: dict[str, Any] = {
            "workers": 1,
            "compute": False,
            "steps": 12,
            "checkpoint_every": 0,
            "sample_every": 0,
            "lease_timeout": 2.0,
        }
        spec = RunSpec(
            run_id=RUN,
            term=TERM,
            definition=dataclasses.replace(
                self.known.definition, validation=0.0 if validation_losses is None else 0.1
            ),
            operation=Operation(**(defaults | operation)),
            corpus=self.known.streams,
            vocabulary=self.known.vocabulary,
            state=self.known.states[step],
            fingerprint=FINGERPRINT,
            libraries=LIBRARIES,
            banned=banned or {},
            validation_losses=validation_losses or {},
            unvalidated=unvalidated,
            started_workers=started_workers,
            session=SESSION,
        )
        self.server = ParameterServer(spec, now=self.now)
        self.started = self.server.handle(Started(), self.now)

    # Who speaks.

    def tell(self, name: str, message: Message) -> list[Effect]:
        """Let a peer say something."""
        return self.server.handle(Received(message, name.encode()), self.now)

    def hello(self, name: str, role: str = "worker") -> list[Effect]:
        """Let a peer say hello."""
        return self.tell(name, hello(name, role))

    def ready(self, name: str, **changes: Any) -> list[Effect]:
        """Let a worker say that it can compute."""
        message = Ready(**IN_RUN, fingerprint=FINGERPRINT, libraries=LIBRARIES, longest_piece=0.01)
        return self.tell(name, dataclasses.replace(message, **changes))

    def join(self, *names: str) -> list[Effect]:
        """Let workers come, one after the other; return what the last one's Ready led to."""
        effects: list[Effect] = []
        for name in names:
            self.hello(name)
            effects = self.ready(name)
        return effects

    def heartbeat(
        self, name: str, *units: Unit, longest_piece: float = 0.01, heard: int = 0
    ) -> list[Effect]:
        """Let a peer say that it lives."""
        beat = Heartbeat(**IN_RUN, longest_piece=longest_piece, heard=heard, units=units)
        return self.tell(name, beat)

    def deliver(
        self, name: str, shards: int | Range, step: int | None = None, **changes: Any
    ) -> list[Effect]:
        """Let a worker send its result of some shards, of the open step if no other is given."""
        first, last = shards if isinstance(shards, tuple) else (shards, shards)
        step = self.server.state.step if step is None else step
        held = self.server.membership.leases_of(name.encode())
        under = [each for each in held if each.shards[0] <= first and last <= each.shards[1]]
        changes = {"lease": under[0].number if under else 0} | changes
        return self.tell(name, unit_result(self.known, first, last, step, **changes))

    def advance_to(self, step: int, name: str) -> list[Effect]:
        """Let one worker deliver everything up to the state `step`."""
        effects: list[Effect] = []
        for _ in range(self.server.state.step, step):
            effects = self.deliver(name, (0, self.known.definition.shards - 1))
        return effects

    def share(self, *names: str) -> list[Effect]:
        """Let workers come, and a step end: each has its range of the next one."""
        self.join(*names)
        return self.advance_to(self.server.state.step + 1, names[0])

    def truth(self, shard: int, step: int) -> Computed:
        """Return what the server itself computes of a shard."""
        return computed(self.server.aggregation.compute_again(shard, step), self.known)

    def compute(self, effects: Sequence[Effect]) -> list[Effect]:
        """Let the server compute what it asks its own shell for."""
        following: list[Effect] = []
        for unit in effects:
            if isinstance(unit, Compute):
                following += self.server.handle(computed(unit, self.known), self.now)
        return following

    def wait(self, seconds: float, *beating: str) -> list[Effect]:
        """Let time pass, tick by tick; `beating` live meanwhile. Return what came of the ticks."""
        effects: list[Effect] = []
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + 0.1, end)
            for name in beating:
                self.heartbeat(name)
            effects += self.server.handle(DeadlinePassed(), self.now)
        return effects

    # What there is to see.

    def member(self, name: str) -> Member:
        """Return what the server knows of a peer."""
        return self.server.membership.members[name.encode()]

    def leases(self, name: str) -> list[int]:
        """Return the numbers of a worker's leases."""
        return [lease.number for lease in self.server.membership.leases_of(name.encode())]

    def ranges_of(self, name: str) -> list[Range]:
        """Return the ranges that a worker holds."""
        return sorted(lease.shards for lease in self.server.membership.leases_of(name.encode()))


def unit_result(known: Reference, first: int, last: int, step: int, **changes: Any) -> UnitResult:
    """Return the right result of the shards at one step, but for the changes.

    What is named like a part of the payload is changed in the payload; hidden states are a list.
    """
    parts = {name: changes.pop(name) for name in Payload._fields if name in changes}
    for name, of_parts in (("sums", tuple), ("losses", tuple), ("hidden", b"".join)):
        if name in parts:
            parts[name] = of_parts(parts[name])
    right: dict[str, Any] = {
        **IN_RUN,
        "lease": 1,
        "first": first,
        "last": last,
        "step": step,
        "weights_digest": folded_digest(known.weights[step]),
        "seconds": 0.01,
        "payload": known.payload(step, first, last)._replace(**parts),
    }
    return UnitResult(**right | changes)


def hidden_of(result: UnitResult) -> list[Frame]:
    """Return a result's hidden states by shard."""
    return equal_parts(result.payload.hidden, result.last - result.first + 1)


def nodes_of(known: Reference, result: UnitResult) -> dict[Range, Frame]:
    """Return the sums of a result by node."""
    nodes = cover(known.definition.shards, (result.first, result.last))
    return dict(zip(nodes, result.payload.sums, strict=True))


def computed(unit: Compute, known: Reference, *, seconds: float = 0.01) -> Computed:
    """Do what a shell does with Compute, from the unit's own bytes."""
    piece = compute(unit, dimensions_of(known.definition, len(known.vocabulary)))
    return piece.computed(unit.shard, unit.step, seconds=seconds)


def flip(frame: Frame) -> bytes:
    """Return other bytes: the lowest bit of the first number."""
    return bytes([frame[0] ^ 1, *frame[1:]])


def hello(name: str, role: str = "worker") -> Hello:
    """Return what a peer says first."""
    return Hello(wire=WIRE_VERSION, role=role, name=name, instance=name, machine={})


def sent(effects: Sequence[Effect], kind: type[Kind], name: str = "") -> list[Kind]:
    """Return the messages of one kind that are sent, to one peer or to anybody."""
    return [
        effect.message
        for effect in effects
        if isinstance(effect, Send)
        and isinstance(effect.message, kind)
        and (not name or effect.to == name.encode())
    ]


def only(effects: Sequence[Effect], kind: type[Kind]) -> Kind:
    """Return the one effect, or the one message sent, of this kind."""
    found: list[Any] = [effect for effect in effects if isinstance(effect, kind)]
    found = found or sent(effects, kind)
    assert len(found) == 1, f"{len(found)} of {kind.__name__} in {effects}"
    one: Kind = found[0]
    return one


def said(effects: Sequence[Effect]) -> str:
    """Return the lines that the machine says, as one text."""
    return "\n".join(effect.text for effect in effects if isinstance(effect, Log))


def status(**values: Any) -> Status:
    """Return a status of a run without workers, but for what is given."""
    figures: dict[str, Any] = {
        **IN_RUN,
        "step": 1,
        "steps": 12,
        "loss_nats_per_character": 1.0,
        "loss_sum_nats_per_character": 1.0,
        "characters": 6,
        "seconds": 0.5,
        "checkpoint": 0,
        "checkpoint_age_seconds": 0.5,
        "validated": None,
        "validation_loss_nats_per_character": None,
        "smooth_loss_nats_per_character": 1.0,
        "best": None,
        "divergence": "",
        "idle_workers": 0,
        "waiting_for": "",
        "counts": {},
        "first": 0,
        "total": 0,
        "workers": (),
    }
    return Status(**figures | values)
