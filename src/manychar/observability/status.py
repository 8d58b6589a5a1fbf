"""A live run's status: as text (figures, a table of the workers, counts), as JSON, its health.

A worker's speed, and the shares of its time, are those of the last ten seconds.
"""

import contextlib
import dataclasses
import math
import time
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from manychar.network.keys import ClientKey
from manychar.observability.observer_client import NoAnswerError, snapshots
from manychar.observability.snapshot import Snapshot
from manychar.observability.text_format import duration, step_of
from manychar.processes.errors import RUN_FAILED, UserError
from manychar.processes.work_progress import moves_cursor
from manychar.protocol.counters import Counter
from manychar.protocol.member import SHARE_NAME

LATE_FROM = 1.0
PLAIN_WIDTH = 160
NAMES_SHOWN = 5
NOT_WRITTEN = "_not_written"
TEXT_COLUMNS = ("worker", "host", "state")
COLUMNS = (
    *(*TEXT_COLUMNS, "shards", "ms/shard", "chars/s", "compute", "exchange", "wait"),
    *("straggler", "late", "dropped"),
)

COUNTER_SENTENCES: dict[str, str] = {
    Counter.UNITS_REPEATED: "units that came twice, with the same bytes",
    Counter.UNITS_CONFLICTING: "units that came twice, with other bytes",
    Counter.UNITS_NOT_COMPARED: "units that came twice, and could not be compared",
    Counter.UNITS_NOT_OPEN: "units of a step that the ending run does not compute",
    Counter.UNITS_FROM_WRONG_STATE: "units from other weights or hidden states",
    Counter.UNITS_NOT_FINITE: "units with a loss or hidden state that is not finite",
    Counter.GRANTS_RESENT: "grants sent again because no result came in time",
    Counter.RANGES_MOVED: "moves of ranges because the workers' speeds had changed",
    Counter.MESSAGES_BEFORE_READY: "messages of workers that had not sent their fingerprint",
    Counter.MESSAGES_FROM_STALE_SESSION: "messages to an earlier server, or from a forgotten peer",
    Counter.MESSAGES_MALFORMED: "messages that could not be read, or that the sender may not send",
    Counter.MESSAGES_FROM_REVOKED_KEY: "messages with a revoked key",
    Counter.CLIENTS_REFUSED: "clients refused: version, numerics, name, key, banned, or a cycle",
    Counter.HANDSHAKES_REFUSED: "handshakes with a key that is unknown or revoked",
    Counter.HANDSHAKES_FAILED: "handshakes: no key, another server's, or not finished within 5 s",
    Counter.SENDS_DROPPED: "messages not sent because the peer's queue was full",
    Counter.CHECKPOINTS_NOT_VALIDATED: "checkpoints whose validation failed",
    Counter.JOURNAL_NOT_WRITTEN: "failed writes of the journal",
    Counter.METRICS_NOT_WRITTEN: "failed writes of metrics.jsonl",
    Counter.CONFIG_NOT_WRITTEN: "failed writes of config.json",
    Counter.EVENTS_NOT_WRITTEN: "failed writes of events.jsonl",
}
"""What each counter counts; deploy/README.md adds what to do about it."""


def show(snapshot: Snapshot, console: Console | None = None) -> str:
    """Return the status as text, not wrapped where there is no terminal."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    if not moves_cursor(console.file):
        console.width, console.soft_wrap = PLAIN_WIDTH, True
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for heading in COLUMNS:
        is_text = heading in TEXT_COLUMNS
        table.add_column(heading, overflow="fold", justify="left" if is_text else "right")
    for row in rows_of(snapshot):
        table.add_row(*row)
    with console.capture() as capture:
        for line in lines_of(snapshot):
            console.print(line)
        if snapshot.workers:
            console.print(table)
    return capture.get()


def as_values(snapshot: Snapshot) -> dict[str, Any]:
    """Return the status and the statistics of all workers as JSON has them."""
    found = dataclasses.asdict(snapshot.status)
    found["workers"] = [worker._asdict() for worker in snapshot.workers]
    return {name: value for name, value in found.items() if name not in ("first", "total")}


def lines_of(snapshot: Snapshot) -> list[str]:
    """Return the lines above the table."""
    status = snapshot.status
    validation = status.validation_loss_nats_per_character
    nats = status.loss_nats_per_character
    losses = [] if math.isnan(nats) else [f"loss {nats:#.5g} nats a character"]
    if validation is not None:
        at = f"at step {status.validated:,}, the best is step {status.best:,}"
        losses.append(f"validation loss {validation:#.5g} ({at})")
    losses.append(f"smooth loss {status.smooth_loss_nats_per_character:#.5g}")
    speed, age = f"{snapshot.speed:,.0f} characters/s", duration(status.checkpoint_age_seconds)
    lines = [
        f"run {status.run_id}, term {status.term}: step {step_of(status.step, status.steps)},"
        f" {speed}",
        ", ".join(losses),
        f"last checkpoint: step {status.checkpoint:,}, {age} ago",
    ]
    if status.divergence:
        lines.append(status.divergence)
    if snapshot.straggler:
        lines.append(snapshot.straggler)
    if slow := ", ".join(each.name for each in snapshot.workers if each.state == "slow"):
        lines.append(f"too slow for a shard: {slow}; a step without it is shorter")
    if status.waiting_for:
        lines.append(f"waiting for {status.waiting_for}")
    if own := [each.longest_piece_seconds for each in snapshot.direct if each.name == SHARE_NAME]:
        longest = f"the longest took {1000 * own[0]:.2g} ms lately"
        lines.append(f"the server computes, too, and answers between two pieces of work: {longest}")
    counts = ((name, n) for name, n in sorted(status.counts.items()) if n)
    return lines + [f"{k}: {n:,} ({COUNTER_SENTENCES.get(k, 'unknown')})" for k, n in counts]


def rows_of(snapshot: Snapshot) -> list[list[str]]:
    """Return the rows of the table of workers, a cell for each of COLUMNS.

    The workers of a relay stand below it, their names indented.
    """
    size, indents, rows = snapshot.dimensions, {"": ""}, []
    for worker in snapshot.workers:
        indent = indents.get(worker.relay, "")
        indents[worker.name] = indent + "  "
        shares = worker.computing, worker.exchanging, worker.waiting, worker.straggling
        cells = [
            *(indent + worker.name, worker.host, worker.state, str(worker.shards)),
            f"{1000 * worker.shard_seconds:,.3g}" if worker.shard_seconds else "",
            f"{worker.shards_per_second * size.streams * size.seq_length:,.0f}",
            *(f"{share:.0%}" for share in shares),
            f"{worker.late_seconds:.1f} s" if worker.late_seconds >= LATE_FROM else "",
            f"{worker.dropped:,}" if worker.dropped else "",
        ]
        rows.append(cells)
    return rows


class Health(NamedTuple):
    """Whether a run is healthy, and the line that says why, or why not."""

    line: str
    healthy: bool = True


def check_health(source: str, key: ClientKey | None, *, connect_timeout: float) -> Health:
    """Watch a live run until it advances, or for `connect_timeout` seconds; say what it waits for.

    Raises UserError where there is no server, it refuses, or the run has ended.
    """
    try:
        with contextlib.closing(snapshots(source, key, connect_timeout=connect_timeout)) as found:
            for before in found:
                deadline = time.monotonic() + connect_timeout
                for now in found:
                    health = health_of(before, now, expired=time.monotonic() >= deadline)
                    if health is not None:
                        return health
    except NoAnswerError as hung:
        return Health(str(hung), healthy=False)
    raise UserError(f"{source}: the run has ended", code=RUN_FAILED)


def health_of(first: Snapshot, now: Snapshot, *, expired: bool) -> Health | None:
    """Return a run's health from two snapshots; None if it is too early and time is left."""
    status = now.status
    at = f"step {step_of(status.step, status.steps)}"
    if (status.term, status.step) > (first.status.term, first.status.step):
        lost = [f"{name}: {n}" for name, n in status.counts.items() if name.endswith(NOT_WRITTEN)]
        return Health("; ".join([f"{at}: it advances, with {now.with_shards}", *lost]))
    if status.waiting_for:
        return Health(f"{at}: it waits for {status.waiting_for}")
    if not expired:
        return None
    late = {worker.name: worker.late_seconds for worker in now.workers if worker.late_seconds}
    if late:
        more = f" and {len(late) - NAMES_SHOWN} more" if len(late) > NAMES_SHOWN else ""
        names = ", ".join(list(late)[:NAMES_SHOWN])
        return Health(f"{at}: it has waited {max(late.values()):.0f} s for {names}{more}")
    return Health(f"{at}: it does not advance, and gives no reason", healthy=False)
