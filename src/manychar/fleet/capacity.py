"""What to expect of a fleet: the time of a step, by formula from measured costs.

`tests/simulation/virtual_fleet.py` runs the real machines in virtual time with the same costs; a
test compares the two.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from manychar.numerics.tree_reduction import Range, cover
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.range_cut import count_of, cut
from manychar.protocol.unit_payload import sparse_form

RESULT_HEADER, WEIGHTS_HEADER, SHARD_BYTES = 160, 128, 12
PAYLOAD_SHARE = 1448 / 1538  # what a 1,500-byte packet leaves of Ethernet to the payload
LATENCY = 50e-6  # one way, in seconds
FIRST_SHARE = 0.7  # of many messages that share a link: when the first has arrived, of the whole
LEAST_GAIN = 0.2  # of a step, by which relays are to make it shorter: the formula can be as wrong
AS_SHORT = 1.02


# Many fields: all that is measured of a machine, in one value.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds on a core. The defaults are what `python -m tests.benchmarks capacity` printed.

    Of the server's main thread: a step, each byte of the weights, a unit, each byte of its sums. Of
    a thread that sends and receives: a message and each byte, plain or encrypted. Of a worker: a
    unit; of a relay's main thread: a step beside the units of its workers; and of a shard's
    positions, numbers, multiplications, and weights that are read anew.
    """

    step: float = 7.03e-05
    step_byte: float = 3.44e-10
    unit: float = 9.39e-05
    unit_byte: float = 2.64e-10
    message: float = 2.62e-05
    message_byte: float = 1.93e-10
    encrypted_byte: float = 7.49e-10
    worker: float = 5.60e-05
    relay: float = 0.0
    position: float = 5.78e-06
    number: float = 9.06e-10
    product: float = 7.29e-11
    weight: float = 1.81e-10

    def of_step(self, size: Dimensions) -> float:
        return self.step + self.step_byte * size.parameters_bytes

    def of_relay(self, size: Dimensions) -> float:
        return self.relay + self.unit_byte * size.parameters_bytes

    def of_units(self, size: Dimensions, units: int, sums: int) -> float:
        return self.unit * units + self.unit_byte * sums * size.parameters_bytes

    def of_messages(self, count: int, total_bytes: int, *, keys: bool) -> float:
        each = self.encrypted_byte if keys else self.message_byte
        return self.message * count + each * total_bytes

    def of_shard(self, size: Dimensions) -> float:
        wide = size.hidden + size.vocabulary_size
        of_stream = self.number * wide + self.product * size.hidden * wide
        once = self.position + self.weight * size.hidden**2
        return size.seq_length * (once + size.streams * of_stream)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet:
    """Workers of the same speed, each on a core of its own, the same number behind each relay.

    `gbits` are those of the link of the server, and of each relay to its workers.
    """

    size: Dimensions
    workers: int
    relays: int = 0
    gbits: float = 10.0
    keys: bool = True
    shard_seconds: float | None = None  # where it does not follow from the costs

    def on_wire(self, total_bytes: int) -> float:
        """Return the seconds that the server's link takes, in one direction."""
        return total_bytes * 8e-9 / (self.gbits * PAYLOAD_SHARE)

    def of_shard(self, costs: Costs) -> float:
        return self.shard_seconds or costs.of_shard(self.size)


def sum_bytes(size: Dimensions, shards: Range) -> int:
    """Return the bytes of the sums of a range's cover: at most, where columns can be left out.

    A unit has no more different characters than positions.
    """
    nodes = cover(size.shards, shards)
    if sparse_form(size) is None:
        return len(nodes) * size.parameters_bytes
    positions = [count_of(node) * size.streams * size.seq_length for node in nodes]
    unseen = sum(max(0, size.vocabulary_size - each) for each in positions)
    whole = len(nodes) * (size.parameters_bytes + size.vocabulary_size)
    return whole - size.value_bytes * size.hidden * unseen


def inward(size: Dimensions, ranges: Sequence[Range]) -> int:
    """Return the bytes that the holders of these ranges send in a step."""
    shards = sum(map(count_of, ranges))
    sums = sum(sum_bytes(size, each) for each in ranges)
    return sums + len(ranges) * RESULT_HEADER + shards * (size.hidden_bytes + SHARD_BYTES)


def outward(size: Dimensions, ranges: Sequence[Range]) -> int:
    """Return the bytes that they are sent: the weights each, and the ids of their shards."""
    shards = sum(map(count_of, ranges))
    return len(ranges) * (size.parameters_bytes + WEIGHTS_HEADER) + shards * size.ids_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds of a step, and of what can be its limit; the server's bytes in a step.

    `network` is the fuller direction of the server's link, `server` the busier of its threads,
    `relay` what a step takes behind a relay, its workers' computing aside. `holders` are workers.
    """

    seconds: float
    computing: float
    network: float
    server: float
    relay: float
    holders: int
    bytes_in: int
    bytes_out: int

    @property
    def limit(self) -> str:
        names = "computing", "network", "server", "relay"
        return max(names, key=lambda name: float(getattr(self, name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Exchange:
    """What holders of ranges exchange with the process above them in a step, in seconds."""

    network: float
    units: float
    transfers: float
    seconds: float


def _exchange(
    fleet: Fleet, costs: Costs, ranges: Sequence[Range], between: Sequence[float]
) -> _Exchange:
    """Return how long it takes from the first weights to the last unit.

    `between` is what each holder takes from its weights to its unit. One unit takes its whole way;
    the others follow it at the pace of the slowest place: all after the quickest holder's, or those
    of the slowest holders after theirs. The thread that sends and receives has sent all weights
    before it turns to results.
    """
    size, holders = fleet.size, len(ranges)
    bytes_in, bytes_out = inward(size, ranges), outward(size, ranges)
    wire_in, wire_out = fleet.on_wire(bytes_in), fleet.on_wire(bytes_out)
    thread_in = costs.of_messages(holders, bytes_in, keys=fleet.keys)
    thread_out = costs.of_messages(holders, bytes_out, keys=fleet.keys)
    units = costs.of_units(size, holders, sum(len(cover(size.shards, each)) for each in ranges))
    both_ways = wire_in + wire_out + 2 * (thread_in + thread_out) + units
    way = 2 * LATENCY + both_ways / holders
    out, work = max(wire_out, thread_out), max(thread_in, units)
    first, then = _shared(wire_out, thread_out), _shared(wire_in, out)
    pace = max(out, first + wire_in, first + then + work) / holders
    slowest = sum(each == max(between) for each in between)
    paced = max(
        min(between) + way + pace * (holders - 1), max(between) + way + pace * (slowest - 1)
    )
    by_thread = thread_out + (thread_in + units + work * (holders - 1)) / holders
    return _Exchange(
        network=max(wire_in, wire_out),
        units=units,
        transfers=thread_in + thread_out,
        seconds=max(paced, by_thread),
    )


def _shared(wire: float, span: float) -> float:
    """Return how much later the first of many messages arrives because they share a link.

    They begin one after the other within `span`, and take `wire` seconds in all. Where the link is
    slower, those that are under way become more and more: with both times t and w of one message,
    that which begins at s arrives at s exp(w / t), so all but exp(-w / t) arrive together.
    """
    slower = wire > span
    return FIRST_SHARE * wire * (1 - math.exp(1 - wire / span)) if slower and span else 0.0


def _cut(
    shards: Range, workers: Sequence[int], *, relayed: bool = False
) -> list[tuple[Range, int]]:
    """Return the range and the number of workers of each holder that gets one."""
    relays = range(len(workers)) if relayed else ()
    held = zip(cut(shards, [1.0] * len(workers), workers, needed=relays), workers, strict=True)
    return [(each, count) for each, count in held if each is not None]


def predict(fleet: Fleet, costs: Costs | None = None) -> Prediction:
    """Return what to expect of a step."""
    size, costs = fleet.size, costs or Costs()
    members = fleet.relays or fleet.workers
    least, more = divmod(fleet.workers, members)
    workers = [least + (i < more) for i in range(members)]
    held = _cut((0, size.shards - 1), workers, relayed=bool(fleet.relays))
    ways = {each: _behind(fleet, costs, *each) for each in {(count_of(r), n) for r, n in held}}
    between = [ways[count_of(shards), workers] for shards, workers in held]
    computing = max(each for each, _ in between)
    ranges = [each for each, _ in held]
    above = _exchange(fleet, costs, ranges, [seconds for _, seconds in between])
    update = costs.of_step(size)
    return Prediction(
        seconds=update + above.seconds,
        computing=computing,
        network=above.network,
        server=max(above.units + update, above.transfers),
        relay=max(seconds - computing for computing, seconds in between),
        holders=sum(min(count_of(shards), workers) for shards, workers in held),
        bytes_in=inward(size, ranges),
        bytes_out=outward(size, ranges),
    )


def _behind(fleet: Fleet, costs: Costs, shards: int, workers: int) -> tuple[float, float]:
    """Return how long a holder of so many shards computes, and takes from its weights to its unit.

    With relays, it is one of so many workers.
    """
    parts = [each for each, _ in _cut((0, shards - 1), [1] * workers)]
    computing = [costs.worker + count_of(each) * fleet.of_shard(costs) for each in parts]
    if not fleet.relays:
        return computing[0], computing[0]
    below = _exchange(fleet, costs, parts, computing).seconds
    return max(computing), costs.of_relay(fleet.size) + below


def by_relays(size: Dimensions, workers: int, cores: int) -> dict[int, float]:
    """Return the seconds of a step by the number of relays on one machine, 0 first.

    Relays are for machines with a core for each worker: they work while the workers wait. Where
    server and relays have none of their own, computing is taken to be slowed in proportion.
    """
    found = {}
    for relays in (0, *(1 << i for i in range(1, workers.bit_length() - 1))):
        if relays and workers > cores:
            break
        slowed = max(1.0, (workers + relays + bool(relays)) / cores)
        shard = Costs().of_shard(size) * slowed
        fleet = Fleet(
            size=size,
            workers=workers,
            relays=relays,
            gbits=math.inf,
            keys=False,
            shard_seconds=shard,
        )
        found[relays] = predict(fleet).seconds
    return found


def relays_that_pay(seconds: Mapping[int, float]) -> int:
    """Return the fewest relays of those whose step is shortest within 2 %; 0 where none pay."""
    shortest = min(seconds.values())
    if shortest > (1 - LEAST_GAIN) * seconds[0]:
        return 0
    return min(relays for relays, each in seconds.items() if each <= AS_SHORT * shortest)
