"""How a live run stands, for a person: a few lines, and a table of the workers.

A worker's figures are those since it joined, or, where an earlier look is given, those since then.
"""

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from manychar.observability.observer_client import Standing
from manychar.protocol.counters import Counter
from manychar.protocol.messages import Dimensions, WorkerStats

LATE_FROM = 1.0
PLAIN_WIDTH = 160
COLUMNS = (
    "worker",
    "host",
    "state",
    "shards",
    "chars/s",
    "compute",
    "exchange",
    "wait",
    "late",
    "dropped",
)

COUNTER_SENTENCES = {
    Counter.GRADIENTS_REPEATED: "gradients that came twice, with the same bytes",
    Counter.GRADIENTS_CONFLICTING: "gradients that came twice, with other bytes",
    Counter.GRADIENTS_NOT_COMPARED: "gradients that came twice, too late to be compared",
    Counter.GRADIENTS_NOT_OPEN: "gradients of a step that the ending run does not compute",
    Counter.GRADIENTS_FROM_WRONG_STATE: "gradients from other weights or hidden states",
    Counter.GRADIENTS_NOT_FINITE: "losses or gradients that are not finite",
    Counter.GRANTS_RESENT: "grants sent again because no gradient came in time",
    Counter.MESSAGES_BEFORE_READY: "messages of workers that had not sent their fingerprint",
    Counter.MESSAGES_FROM_STALE_SESSION: "messages to an earlier server, or from a forgotten peer",
    Counter.MESSAGES_MALFORMED: "messages that could not be read, or that the sender may not send",
    Counter.MESSAGES_IGNORED: "messages from blocked senders",
    Counter.MESSAGES_FROM_REVOKED_KEY: "messages with a revoked key",
    Counter.CLIENTS_REFUSED: "clients refused: wrong version, wrong name, or banned",
    Counter.SENDERS_BLOCKED: "senders blocked for 30 s after too many faults",
    Counter.HANDSHAKES_REFUSED: "handshakes without a key, or with one that is not listed",
    Counter.HANDSHAKES_FAILED: "handshakes in another protocol, or with another server's key",
    Counter.SENDS_DROPPED: "messages not sent because the peer's queue was full",
    Counter.CHECKPOINTS_NOT_WRITTEN: "checkpoints not written",
    Counter.CHECKPOINTS_NOT_VALIDATED: "checkpoints removed before they were validated",
    Counter.JOURNAL_NOT_WRITTEN: "failed writes of the journal",
    Counter.METRICS_NOT_WRITTEN: "failed writes of metrics.jsonl",
    Counter.CONFIG_NOT_WRITTEN: "failed writes of config.json",
    Counter.BEST_NOT_WRITTEN: "failed writes of the best checkpoint",
}
"""What each counter counts; deploy/README.md adds what to do about it."""


def render(standing: Standing, before: Standing | None = None) -> RenderableType:
    """Return what there is to see of a run; `before` is an earlier look at it."""
    lines = [escape(line) for line in lines_of(standing, before)]
    return Group(*lines, _Workers(rows_of(standing, before))) if standing.workers else Group(*lines)


class _Workers:
    """The workers as a table; where the terminal is too narrow for it, one below the other."""

    def __init__(self, rows: list[list[str]]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _table(self._rows)
        wide = options.update(max_width=PLAIN_WIDTH)
        if console.measure(table, options=wide).minimum <= options.max_width:
            yield table
            return
        for name, *cells in self._rows:
            said = [
                f"{heading}\N{NO-BREAK SPACE}{cell}"
                for heading, cell in zip(COLUMNS[1:], cells, strict=True)
                if cell
            ]
            yield Text(name)
            yield Padding(Text("  ".join(said)), (0, 0, 0, 2))


def _table(rows: list[list[str]]) -> Table:
    """Return the table of the workers; a column that has nothing in it is left out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = [each for each in zip(COLUMNS, *rows, strict=True) if any(each[1:])]
    for heading, *_ in columns:
        text = heading in COLUMNS[:3]
        table.add_column(heading, justify="left" if text else "right", no_wrap=True)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*map(escape, row))
    return table


def show(standing: Standing, before: Standing | None = None) -> str:
    """Return it as text, as wide as it takes where there is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width, console.soft_wrap = PLAIN_WIDTH, True
    with console.capture() as capture:
        console.print(render(standing, before))
    return capture.get()


def lines_of(standing: Standing, before: Standing | None) -> list[str]:
    """Return how the run itself stands."""
    report, size = standing.report, standing.dimensions
    nats = report.smooth_loss / size.seq_length
    total = f" of {report.steps:,}" if report.steps else ""
    lines = [
        f"run {report.run}, term {report.term}: step {report.step:,}{total},"
        f" smooth loss {report.smooth_loss:.2f} ({nats:.3f} nats a character),"
        f" {_speed(standing, before)}",
        f"last checkpoint: step {report.checkpoint:,}, {_age(report.checkpoint_age)} ago",
    ]
    if report.validation is not None:
        lines.append(
            f"held-out text: {report.validation:.4f} nats a character at step {report.validated:,};"
            f" the best is step {report.best:,}"
        )
    if standing.waiting:
        lines.append(f"waiting for {standing.waiting}")
    return lines + [_count(name, n) for name, n in sorted(report.counts.items()) if n]


def _count(name: str, n: int) -> str:
    """Return a count in words; `name` is COUNTER or COUNTER:SENDER."""
    counter, _, sender = name.partition(":")
    sentence = COUNTER_SENTENCES.get(Counter(counter), "") if counter in tuple(Counter) else ""
    sender = f", from {sender}" if sender else ""
    return f"{counter}: {n:,}{sender} ({sentence})"


def rows_of(standing: Standing, before: Standing | None) -> list[list[str]]:
    """Return the rows of the table of workers."""
    earlier = {worker.name: worker for worker in before.workers} if before else {}
    return [
        _row(worker, earlier.get(worker.name), standing.dimensions) for worker in standing.workers
    ]


def _row(worker: WorkerStats, before: WorkerStats | None, size: Dimensions) -> list[str]:
    share = since(worker, before)
    seconds = max(share.present, 1e-9)
    per_unit = size.streams * size.seq_length
    return [
        worker.name,
        worker.host,
        worker.state,
        str(worker.leases),
        f"{share.units * per_unit / seconds:,.0f}",
        f"{100 * share.computing / seconds:.0f} %",
        f"{100 * exchanging(share) / seconds:.0f} %",
        f"{100 * share.waiting / seconds:.0f} %",
        f"{worker.late:.1f} s" if worker.late >= LATE_FROM else "",
        f"{worker.dropped:,}" if worker.dropped else "",
    ]


def since(worker: WorkerStats, before: WorkerStats | None) -> WorkerStats:
    """Return what a worker did between two looks; all it did, if it has joined anew since."""
    if before is None or before.present >= worker.present:
        return worker
    return worker._replace(
        units=worker.units - before.units,
        present=worker.present - before.present,
        computing=max(0.0, worker.computing - before.computing),
        waiting=max(0.0, worker.waiting - before.waiting),
    )


def exchanging(worker: WorkerStats) -> float:
    """Return the seconds that went neither into computing nor into waiting."""
    return max(0.0, worker.present - worker.computing - worker.waiting)


def _speed(standing: Standing, before: Standing | None) -> str:
    report = standing.report
    if before is None or before.report.seconds >= report.seconds:
        return f"{report.characters / max(report.seconds, 1e-9):,.0f} characters/s on average"
    characters = report.characters - before.report.characters
    return f"{characters / (report.seconds - before.report.seconds):,.0f} characters/s"


def _age(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
