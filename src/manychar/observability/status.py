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
    if counts := {what: n for what, n in report.counts.items() if n}:
        lines.append("; ".join(f"{what}: {n:,}" for what, n in sorted(counts.items())))
    return lines


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
