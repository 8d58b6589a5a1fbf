"""What goes wrong in one schedule: drawn from its seed, each fault alone or several mixed."""

import dataclasses
import random

MESSAGE_FAULTS = ("loss", "duplication", "delay", "reordering")
EVENT_FAULTS = (
    "partition",
    "reconnect",
    "slow",
    "hang",
    "worker-crash",
    "leave",
    "join",
    "server-crash",
    "server-stall",
    "stop",
)
FORGED_FAULTS = ("confused", "differing-repeat", "other-cut", "foreign")
RARE_FAULTS = ("suspended", "broken", "copied", "relays")
MIXED = (*MESSAGE_FAULTS, *EVENT_FAULTS, *FORGED_FAULTS, "moves")
RELAYED = (*MESSAGE_FAULTS, *EVENT_FAULTS, "confused", "other-cut", "foreign", "moves")
STRIKES = (*EVENT_FAULTS, "foreign", "copied")
FAULTS = (*MIXED, *RARE_FAULTS)
SLOWEST = 2.0
FACTORS = (0.5, 1.0, 1.0, SLOWEST)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One run of the world, named by a seed and faults joined by +, or `mixed` or `none`."""

    seed: int
    kind: str = "mixed"

    def __str__(self) -> str:
        return f"{self.kind} {self.seed}"

    @classmethod
    def parse(cls, line: str) -> "Schedule":
        """Read what str() writes."""
        kind, seed = line.split()
        return cls(int(seed), kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a schedule's seed decides before the run begins. Times are virtual seconds.

    Of a broken worker, one result is wrong, of a step from `wrong_from` on; another worker's right
    one comes `truth_after` steps later. `attentive` workers hear of leases while they compute.
    A shard takes up to `shard_seconds`, times 1.5, and the worker's own factor, at most SLOWEST.
    The server's process `computes`, too, and takes up to `dispute_seconds` for a disputed shard.
    The run stops after `patience` checkpoints without a better one; validation takes up to
    `validation_seconds` for each. There are `relays`, in a tree of the schedule's own.
    """

    faults: frozenset[str]
    shards: int
    streams: int
    length: int
    steps: int
    checkpoint_every: int
    silence: float
    workers: int
    shard_seconds: float
    latency: float
    disk_seconds: float
    loss: float
    duplication: float
    held_up: float
    shuffled: float
    notices_disconnects: bool
    late_out_of_order: bool
    peace_at: float
    events: tuple[tuple[float, str], ...]
    wrong_from: int
    truth_after: int
    attentive: bool
    computes: bool
    dispute_seconds: float
    patience: int
    validation_seconds: float
    relays: int

    @property
    def disorder(self) -> bool:
        """Whether messages of one connection can overtake one another, or come twice."""
        shuffled = not self.faults.isdisjoint({"reordering", "duplication"})
        return shuffled or self.late_out_of_order

    @property
    def answers_within(self) -> float:
        """How soon a heartbeat tells of a Grant, without faults: it is read after a shard."""
        return 1.5 * SLOWEST * self.shard_seconds + 3 * self.latency + self.silence / 4


def draw(schedule: Schedule) -> Plan:
    """Return the plan of a schedule."""
    chance = random.Random(f"plan {schedule}")  # noqa: S311
    faults = _faults(schedule, chance)
    lasts = chance.uniform(2, 6)
    events = [
        (chance.uniform(0, lasts), fault)
        for fault in sorted(faults.intersection(STRIKES))
        for _ in range(chance.randint(1, 3))
    ]
    suspended = "suspended" in faults
    least = 2 if "broken" in faults else 1
    shards = chance.randint(1, 2 if suspended else 8)
    return Plan(
        faults=faults,
        shards=shards,
        streams=chance.randint(1, 2),
        length=chance.choice((5, 8, 11, 14)),
        steps=2 if suspended else chance.randint(5, 11),
        checkpoint_every=chance.randint(2, 4),
        silence=chance.choice((1.0, 2.0, 4.0)),
        workers=1 if suspended else chance.randint(least, 5),
        shard_seconds=chance.choice((0.02, 0.1, 0.4)) * min(1, 3 / shards),
        latency=chance.choice((0.001, 0.02, 0.15)),
        disk_seconds=chance.choice((0.0, 0.1, 1.0)),
        loss=chance.uniform(0.02, 0.3) if "loss" in faults else 0.0,
        duplication=chance.uniform(0.05, 0.4) if "duplication" in faults else 0.0,
        held_up=chance.uniform(0.02, 0.2) if "delay" in faults else 0.0,
        shuffled=chance.uniform(0.05, 0.5) if "reordering" in faults else 0.0,
        notices_disconnects=chance.random() < 0.5,
        late_out_of_order=bool(faults & {"server-crash", "stop"}) and chance.random() < 0.5,
        peace_at=lasts,
        events=tuple(sorted(events)),
        wrong_from=chance.randint(0, 5),
        truth_after=chance.randint(0, 5),
        attentive=chance.random() < 0.5,
        computes=not suspended and chance.random() < 0.3 and "relays" not in faults,
        dispute_seconds=chance.choice((0.0, 0.5)),
        patience=chance.choice((0, 0, 0, 1, 2)),
        validation_seconds=chance.choice((0.0, 0.2, 2.0)),
        relays=chance.randint(1, 3) if "relays" in faults else 0,
    )


def _faults(schedule: Schedule, chance: random.Random) -> frozenset[str]:
    if schedule.kind == "none":
        return frozenset()
    if schedule.kind == "broken":
        return frozenset({"broken", *chance.sample(MESSAGE_FAULTS, chance.randint(0, 1))})
    if schedule.kind == "relayed":
        return frozenset({"relays", *chance.sample(RELAYED, chance.randint(1, 5))})
    if schedule.kind != "mixed":
        faults = frozenset(schedule.kind.split("+"))
        if not faults <= set(FAULTS):
            raise ValueError(f"no such fault, {schedule.kind}: {', '.join(FAULTS)}")
        return faults
    return frozenset(chance.sample(MIXED, chance.randint(2, 6)))
