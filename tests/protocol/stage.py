"""A server on a stage: tests say who speaks, and look at what the machine does about it.

Peers are called by name, time stands still unless a test moves it, and every gradient comes from
the single process's run, so that a story needs no numbers of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from manychar.protocol.effects import Effect, Log, Send
from manychar.protocol.events import Computed, DeadlinePassed, Received, Started
from manychar.protocol.membership import Member
from manychar.protocol.messages import (
    WIRE_VERSION,
    Gradient,
    Heartbeat,
    Hello,
    Message,
    Ready,
    Status,
    Unit,
    digest,
)
from manychar.protocol.run_operation import Operation
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server import ParameterServer
from tests.simulation.reference import reference

RUN, TERM, FINGERPRINT = "run-1", 3, "the-runs"
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
        **operation: Any,
    ) -> None:
        self.now = 0.0
        self.known = reference(shards, 1, 11)
        defaults: dict[str, Any] = {
            "workers": 1,
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
        message = Ready(
            run_id=RUN, term=TERM, fingerprint=FINGERPRINT, libraries=LIBRARIES, slowest=0.01
        )
        return self.tell(name, dataclasses.replace(message, **changes))

    def join(self, *names: str) -> list[Effect]:
        """Let workers come, one after the other; return what the last one's Ready led to."""
        effects: list[Effect] = []
        for name in names:
            self.hello(name)
            effects = self.ready(name)
        return effects

    def heartbeat(
        self, name: str, *units: Unit, slowest: float = 0.01, computing: float = 0.0
    ) -> list[Effect]:
        """Let a peer say that it lives."""
        beat = Heartbeat(run_id=RUN, term=TERM, slowest=slowest, computing=computing, units=units)
        return self.tell(name, beat)

    def gradient(self, shard: int, step: int, **changes: Any) -> Gradient:
        """Return the right gradient, but for the changes."""
        piece = self.known.pieces[shard, step]
        right = Gradient(
            run_id=RUN,
            term=TERM,
            lease=1,
            shard=shard,
            step=step,
            hidden_digest=digest(self.known.hidden[step][shard]),
            loss=piece.loss,
            gradient=piece.gradient,
            hidden=piece.hidden,
        )
        return dataclasses.replace(right, **changes)

    def deliver(self, name: str, shard: int, step: int, **changes: Any) -> list[Effect]:
        """Let a worker send a gradient."""
        return self.tell(name, self.gradient(shard, step, **changes))

    def advance_to(self, step: int, name: str) -> list[Effect]:
        """Let one worker deliver everything up to the state `step`."""
        effects: list[Effect] = []
        for each in range(self.server.state.step, step):
            for shard in range(self.known.definition.shards):
                effects = self.deliver(name, shard, each)
        return effects

    def truth(self, shard: int, step: int) -> Computed:
        """Return what the server itself computes for a unit."""
        return self.known.pieces[shard, step].computed(shard, step, seconds=0.01)

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

    def shards_of(self, name: str) -> list[int]:
        """Return the shards that a worker holds."""
        return sorted(lease.shard for lease in self.server.membership.leases_of(name.encode()))


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
        "run_id": RUN,
        "term": TERM,
        "step": 1,
        "steps": 12,
        "loss": 1.0,
        "smooth_loss": 1.0,
        "characters": 6,
        "seconds": 0.5,
        "checkpoint": 0,
        "checkpoint_age": 0.5,
        "validated": None,
        "validation": None,
        "best": None,
        "idle_workers": 0,
        "waiting_for": "",
        "counts": {},
        "first": 0,
        "total": 0,
        "workers": (),
    }
    return Status(**figures | values)
