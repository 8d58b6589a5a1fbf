"""The command `plan`."""

from typing import Annotated, Any

from manychar.cli.console import write
from manychar.fleet.capacity import Fleet, predict
from manychar.numerics.option import Option, counted, resolve
from manychar.numerics.run_definition import Definition
from manychar.processes.errors import UserError
from manychar.protocol.dimensions import Dimensions, check_sizes

MOST = 65_536
WORKERS = Option("Workers, each on a core of its own.", least=1, most=MOST)
RELAYS = Option("Relays, each for the same number of workers.", least=0, most=MOST)
SHARDS = Option(
    "Parts of a step that are computed in parallel.",
    least=1,
    most=MOST,
    without="as many as workers",
)
VOCABULARY = Option("Distinct characters of the text.", least=1, most=0x110000)
GBITS = Option("Gbit/s of the server's link, in each direction.", least=1e-3, most=1e6)
KEYS = Option("Connections have keys, so they are encrypted.", names=("--keys/--no-keys",))
SHARD_MS = Option(
    "Milliseconds that a worker computes a shard, as status shows.", above=0, without="as measured"
)
REMEDIES = {
    "computing": "faster workers, or more of them and as many --shards",
    "network": "more --streams, fewer workers with more shards each, --relays, or a faster link",
    "server": "more --streams, fewer workers with more shards each, or --relays",
    "relay": "more --relays, or more --streams",
}
SIZES = "hidden", "seq_length", "streams", "shards", "dtype"
FEW_SHARDS = "more --shards: workers without one are idle"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def plan(
    workers: Annotated[int, WORKERS] = 4,
    relays: Annotated[int, RELAYS] = 0,
    shards: Annotated[int | None, SHARDS] = None,
    vocabulary: Annotated[int, VOCABULARY] = 103,
    gbits: Annotated[float, GBITS] = 10.0,
    keys: Annotated[bool, KEYS] = True,
    shard_ms: Annotated[float | None, SHARD_MS] = None,
    **flags: Any,
) -> None:
    """Predict the speed of a fleet on many machines, and what limits it."""
    if relays > workers:
        raise UserError(f"--relays {relays}: more than --workers, {workers}")
    shards = shards or workers
    values = resolve(Definition, {**flags, "shards": shards})
    size = Dimensions(vocabulary_size=vocabulary, **{name: values[name] for name in SIZES})
    check_sizes(size)
    seconds = shard_ms / 1000 if shard_ms else None
    fleet = Fleet(
        size=size, workers=workers, relays=relays, gbits=gbits, keys=keys, shard_seconds=seconds
    )
    found = predict(fleet)
    rate = 1 / found.seconds
    computing, network, server, relay = (
        _short(1000 * each) for each in (found.computing, found.network, found.server, found.relay)
    )
    remedy = REMEDIES[found.limit]
    if found.limit == "computing" and found.holders < workers:
        remedy = FEW_SHARDS
    elif relays and found.limit != "relay":
        remedy = remedy.replace("--relays", "another number of --relays")
    behind, relayed = (f" behind {relays:,} relays", f", relay {relay}") if relays else ("", "")
    write(
        f"{found.holders:,} of {workers:,} workers{behind} compute {shards:,} shards of"
        f" {counted(size.streams, 'stream')}: {_short(rate)} steps/s,"
        f" {rate * shards * size.streams * size.seq_length:,.0f} characters/s\n"
        f"the server receives {_short(rate * found.bytes_in / 1e6)} MB/s, and sends"
        f" {_short(rate * found.bytes_out / 1e6)} MB/s\n"
        f"a step takes {_short(1000 * found.seconds)} ms: computing {computing}, network {network},"
        f" server {server}{relayed}; they overlap\n"
        f"the limit is {found.limit}: {remedy}\n"
    )
