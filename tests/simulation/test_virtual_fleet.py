"""A fleet in virtual time takes as long as the formula says, and longer where workers differ."""

import collections
import dataclasses
import itertools
import sys
from typing import Any

import pytest

from manychar.fleet.capacity import LEAST_GAIN, Costs, Fleet, by_relays, predict, relays_that_pay
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.events import Event
from tests.simulation.virtual_fleet import Luck, VirtualFleet

FREE = Costs(**{field.name: 0.0 for field in dataclasses.fields(Costs)})


def fleet(
    workers: int, *, hidden: int = 512, shards: int = 0, streams: int = 32, **others: float
) -> Fleet:
    size = Dimensions(
        vocabulary_size=103,
        hidden=hidden,
        seq_length=25,
        streams=streams,
        shards=shards or workers,
        dtype="float32",
    )
    return Fleet(size=size, workers=workers, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize("gbits", [1, 10, 100])
@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize(
    ("workers", "shards", "hidden", "streams"),
    [
        *((1, 1, 100, 1), (1, 4, 512, 16), (4, 4, 512, 1), (4, 16, 100, 16)),
        *((30, 30, 100, 32), (30, 120, 2048, 1), (30, 30, 512, 1024)),
        pytest.param(300, 300, 512, 32, marks=pytest.mark.long),
        pytest.param(1000, 1000, 512, 32, marks=pytest.mark.long),
    ],
)
def test_the_formula_is_what_the_machines_do(
    workers: int, shards: int, hidden: int, streams: int, gbits: int, *, keys: bool
) -> None:
    here = fleet(workers, hidden=hidden, shards=shards, streams=streams, gbits=gbits, keys=keys)
    expect_the_formula(here)


@pytest.mark.parametrize("gbits", [1, 10, 100])
@pytest.mark.parametrize(
    ("relays", "workers", "shards", "hidden", "streams"),
    [
        *((1, 4, 4, 100, 16), (4, 16, 16, 512, 1), (4, 32, 64, 2048, 32), (8, 64, 64, 512, 32)),
        pytest.param(32, 1024, 1024, 512, 32, marks=pytest.mark.long),
    ],
)
def test_the_formula_is_what_the_machines_do_with_relays(
    relays: int, workers: int, shards: int, hidden: int, streams: int, gbits: int
) -> None:
    here = fleet(workers, hidden=hidden, shards=shards, streams=streams, gbits=gbits, relays=relays)
    expect_the_formula(here)


@pytest.mark.long
@pytest.mark.parametrize(("relays", "gbits"), [(0, 1), (0, 10), (0, 100), (100, 10), (100, 100)])
def test_the_formula_is_what_ten_thousand_workers_do(relays: int, gbits: int) -> None:
    expect_the_formula(fleet(10_000, hidden=100, relays=relays, gbits=gbits))


@pytest.mark.parametrize(
    ("hidden", "streams", "shards", "workers", "cores", "relays"),
    [
        *((100, 2, 32, 32, 64, 4), (100, 2, 32, 32, 32, 4), (1024, 1, 64, 64, 128, 8)),
        *((100, 2, 32, 32, 31, 0), (100, 64, 2, 2, 2, 0), (100, 8, 8, 8, 64, 0)),
        *((100, 2, 4, 32, 64, 0), (1024, 64, 32, 32, 64, 0), (512, 8, 16, 15, 64, 0)),
    ],
)
def test_relays_on_one_machine_where_the_machines_are_faster_with_them(
    hidden: int, streams: int, shards: int, workers: int, cores: int, relays: int
) -> None:
    here = fleet(workers, hidden=hidden, shards=shards, streams=streams, gbits=1e9, keys=False)
    assert relays_that_pay(by_relays(here.size, workers, cores)) == relays
    if relays:
        with_relays = VirtualFleet(dataclasses.replace(here, relays=relays)).run().seconds
        assert with_relays < (1 - LEAST_GAIN) * VirtualFleet(here).run().seconds


@pytest.mark.long
@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("workers", [12, 15, 17, 31, 64])
def test_relays_are_chosen_rightly_where_ranges_do_not_come_out_even(
    workers: int, streams: int
) -> None:
    for hidden, shards in itertools.product((100, 512), (16, 20, 37, 64, 256)):
        here = fleet(workers, hidden=hidden, shards=shards, streams=streams, gbits=1e9, keys=False)
        relays = relays_that_pay(by_relays(here.size, workers, 256))
        with_relays = VirtualFleet(dataclasses.replace(here, relays=relays or 4)).run().seconds
        gain = 1 - with_relays / VirtualFleet(here).run().seconds
        assert gain > 0.05 if relays else gain < 0.3, (hidden, shards, relays, gain)


def lines_of_a_step(workers: int) -> float:
    """Return how many lines of code the server's machine runs, a worker, in a step."""
    world = VirtualFleet(fleet(workers, hidden=100))
    machine, lines = world.server.machine, collections.Counter[int]()
    handle = machine.handle

    def trace(frame: Any, event: str, argument: Any) -> Any:
        lines[machine.state.step] += event == "line"  # each turn of a loop is one
        return trace

    def traced(event: Event, now: float) -> Any:
        sys.settrace(trace)
        try:
            return handle(event, now)
        finally:
            sys.settrace(None)

    machine.handle = traced
    world.run()
    whole = sorted(lines)[2:-1]  # all have joined by the first, and the last is not over
    return sum(lines[step] for step in whole) / len(whole) / workers


@pytest.mark.long
def test_what_a_server_does_for_a_worker_does_not_grow_with_their_number() -> None:
    """In microseconds, with sockets: `python -m tests.benchmarks many`."""
    assert lines_of_a_step(1000) < 1.5 * lines_of_a_step(100)


def test_columns_that_are_not_sent_are_counted() -> None:
    size = dataclasses.replace(fleet(4).size, vocabulary_size=5000)
    here = Fleet(size=size, workers=4, gbits=1)
    unseen = 5000 - 32 * 25
    columns = 4 * size.value_bytes * size.hidden * unseen
    assert predict(here).bytes_in < 1.01 * (4 * size.parameters_bytes - columns)
    expect_the_formula(here)


@pytest.mark.parametrize(
    ("relays", "workers", "shards"),
    [
        *((0, 3, 8), (0, 5, 32), (0, 12, 50), (0, 8, 4), (0, 15, 16), (0, 30, 32)),
        *((3, 12, 12), (5, 32, 32), (4, 10, 16), (7, 100, 100)),
    ],
)
def test_ranges_that_do_not_come_out_even_are_predicted_too(
    relays: int, workers: int, shards: int
) -> None:
    here = fleet(workers, shards=shards, relays=relays)
    assert VirtualFleet(here).run().seconds == pytest.approx(predict(here).seconds, rel=0.2)


@pytest.mark.long
def test_relays_whose_messages_cost_more_than_they_compute_get_nothing() -> None:
    here = fleet(1000, hidden=100, relays=100, gbits=1)
    found, formula = VirtualFleet(here).run(), predict(here)
    assert found.seconds < 0.8 * formula.seconds
    assert found.use.bytes_in < 0.8 * formula.bytes_in


def expect_the_formula(here: Fleet) -> None:
    found, formula = VirtualFleet(here).run(), predict(here)
    assert found.seconds == pytest.approx(formula.seconds, rel=0.08)
    assert found.use.bytes_in == formula.bytes_in
    assert found.use.bytes_out == formula.bytes_out


@pytest.mark.parametrize(
    ("here", "limit"),
    [
        (fleet(4, streams=256), "computing"),
        (fleet(100, gbits=1), "network"),
        (fleet(100, gbits=100), "server"),
    ],
)
def test_the_limit_is_what_makes_a_step_shorter(here: Fleet, limit: str) -> None:
    faster = {
        "computing": dataclasses.replace(here, shard_seconds=1e-6),
        "network": dataclasses.replace(here, gbits=1e6),
    }
    cheaper = dataclasses.replace(
        Costs(), **dict.fromkeys(("unit", "unit_byte", "message", "encrypted_byte"), 0.0)
    )
    found = {name: VirtualFleet(each).run().seconds for name, each in faster.items()}
    found["server"] = VirtualFleet(here, cheaper).run().seconds
    assert predict(here).limit == min(found, key=lambda name: found[name]) == limit


def test_keys_take_time_at_the_thread_that_sends_and_receives() -> None:
    with_keys = VirtualFleet(fleet(100, gbits=100)).run()
    without = VirtualFleet(fleet(100, gbits=100, keys=False)).run()
    each, plain = Costs().encrypted_byte, Costs().message_byte
    moved = with_keys.use.bytes_in + with_keys.use.bytes_out
    more = with_keys.use.transfers - without.use.transfers
    assert more == pytest.approx(2 * moved * (each - plain))  # at both ends
    assert with_keys.seconds > 1.2 * without.seconds


def test_what_costs_nothing_takes_the_time_of_the_wire() -> None:
    here = fleet(1, gbits=1, shard_seconds=1e-9)
    size = here.size
    weights = size.parameters_bytes + 128 + size.ids_bytes
    result = size.parameters_bytes + 160 + size.hidden_bytes + 12
    on_wire = (weights + result) * 8 / 1e9 * 1538 / 1448
    found = VirtualFleet(here, FREE).run().seconds
    assert found == pytest.approx(on_wire + 100e-6, rel=1e-6)


def test_workers_that_differ_or_fail_make_a_step_longer_and_the_same_seed_the_same() -> None:
    here = fleet(10, streams=1024, gbits=100)
    equal = VirtualFleet(here).run().seconds
    for luck in (Luck(spread=0.3), Luck(failures=1 / 60)):
        runs = [VirtualFleet(here, luck=luck).run(steps=20).seconds for _ in range(2)]
        assert runs[0] == runs[1] > 1.05 * equal
    other = Luck(seed=1, spread=0.3)
    assert VirtualFleet(here, luck=other).run().seconds != runs[0]
