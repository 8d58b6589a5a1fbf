"""What to expect of a fleet: the time of a step, by formula from measured costs.

`tests/simulation/virtual_fleet.py` runs the real machines in virtual time with the same costs; a
test compares the two.
"""

import dataclasses

from manychar.numerics.tree_reduction import cover
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.range_cut import count_of, cut

RESULT_HEADER, WEIGHTS_HEADER, SHARD_BYTES = 160, 128, 12
PAYLOAD_SHARE = 1448 / 1538  # what a 1,500-byte packet leaves of Ethernet to the payload
LATENCY = 50e-6  # one way, in seconds


# 12 fields: all that is measured of a machine, in one value.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds on a core. The defaults are what `python -m tests.benchmarks capacity` printed.

    Of the server's main thread: a step, each byte of the weights, a unit, each byte of its sums. Of
    a thread that sends and receives: a message and each byte, plain or encrypted. Of a worker: a
    unit; and of a shard's positions, numbers, multiplications, and weights that are read anew.
    """

    step: float = 3.00e-04
    step_byte: float = 1.17e-09
    unit: float = 9.61e-05
    unit_byte: float = 1.31e-09
    message: float = 3.54e-05
    message_byte: float = 2.64e-10
    encrypted_byte: float = 1.37e-09
    worker: float = 2.17e-04
    position: float = 1.30e-05
    number: float = 7.23e-09
    product: float = 1.16e-10
    weight: float = 5.66e-10

    def of_step(self, size: Dimensions) -> float:
        return self.step + self.step_byte * size.parameters_bytes

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
    """Workers of the same speed, each on a core of its own; `gbits` are of the server's link."""

    size: Dimensions
    workers: int
    gbits: float = 10.0
    keys: bool = True
    shard_seconds: float | None = None  # where it does not follow from the costs

    def on_wire(self, total_bytes: int) -> float:
        """Return the seconds that the server's link takes, in one direction."""
        return total_bytes * 8e-9 / (self.gbits * PAYLOAD_SHARE)

    def of_shard(self, costs: Costs) -> float:
        """Return the seconds that a worker computes a shard."""
        return self.shard_seconds or costs.of_shard(self.size)


def inward(size: Dimensions, workers: int, sums: int) -> int:
    """Return the bytes that a server is sent in a step: the sums of the ranges' covers."""
    results = sums * size.parameters_bytes + workers * RESULT_HEADER
    return results + size.shards * (size.hidden_bytes + SHARD_BYTES)


def outward(size: Dimensions, workers: int) -> int:
    """Return the bytes that it sends: weights to each worker that holds a range, ids of shards."""
    return workers * (size.parameters_bytes + WEIGHTS_HEADER) + size.shards * size.ids_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds of a step, and of what can be its limit; the server's bytes in a step.

    `network` is the fuller direction of the server's link, `server` the busier of its threads.
    """

    seconds: float
    computing: float
    network: float
    server: float
    holders: int
    bytes_in: int
    bytes_out: int

    @property
    def limit(self) -> str:
        """Which of the three takes longest."""
        return max(("computing", "network", "server"), key=lambda name: float(getattr(self, name)))


def predict(fleet: Fleet, costs: Costs | None = None) -> Prediction:
    """Return what to expect of a step.

    One unit takes its whole way; the others follow it at the pace of the slowest place. The thread
    that sends and receives has sent all weights before it turns to results.
    """
    size, costs = fleet.size, costs or Costs()
    ranges = [r for r in cut((0, size.shards - 1), [1.0] * fleet.workers) if r is not None]
    holders, sums = len(ranges), sum(len(cover(size.shards, each)) for each in ranges)
    bytes_in, bytes_out = inward(size, holders, sums), outward(size, holders)
    wire_in, wire_out = fleet.on_wire(bytes_in), fleet.on_wire(bytes_out)
    thread_in = costs.of_messages(holders, bytes_in, keys=fleet.keys)
    thread_out = costs.of_messages(holders, bytes_out, keys=fleet.keys)
    units, update = costs.of_units(size, holders, sums), costs.of_step(size)
    computing = costs.worker + max(map(count_of, ranges)) * fleet.of_shard(costs)
    both_ways = wire_in + wire_out + 2 * (thread_in + thread_out) + units
    one = computing + 2 * LATENCY + both_ways / holders
    others = 1 - 1 / holders
    paced = one + others * max(wire_in, wire_out, thread_in, thread_out, units)
    by_thread = thread_out + (thread_in + units) / holders + others * max(thread_in, units)
    return Prediction(
        seconds=update + max(paced, by_thread),
        computing=computing,
        network=max(wire_in, wire_out),
        server=max(units + update, thread_in + thread_out),
        holders=holders,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )
