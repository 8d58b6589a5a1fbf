"""How far a long piece of work is: a bar on a terminal, elsewhere a line every two seconds."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from manychar.processes import log
from manychar.processes.log import logger

SHOWN_EVERY = 2.0  # seconds; shorter work is not shown
NARROWEST = 70  # columns: a billion steps, the bar and the loss


def moves_cursor(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that can move its cursor; else TERM is `dumb`, see `run`."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def can_draw() -> bool:
    """Whether standard error is a terminal to draw on, wide enough, and shows what is logged."""
    if not moves_cursor(sys.stderr) or log.is_json() or not log.shows_info():
        return False
    from rich.console import Console  # noqa: PLC0415 - takes time, is rarely needed

    return Console(stderr=True).width >= NARROWEST


@contextlib.contextmanager
def work_progress(what: str, *, draw: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many bytes are done, and of how many (0: not known)."""
    show_at = time.monotonic() + SHOWN_EVERY
    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal show_at, bar
        if time.monotonic() < show_at:
            return
        if draw and (bar or can_draw()):
            if bar is None:
                from rich.console import Console  # noqa: PLC0415
                from rich.progress import Progress  # noqa: PLC0415

                bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
                bar.add_task(what)
            text = what if total else f"{what}: {done / 1e6:,.0f} MB"
            bar.update(bar.task_ids[0], completed=done, total=total or None, description=text)
        else:
            show_at = time.monotonic() + SHOWN_EVERY
            share = f"{done / total:.0%} of {total / 1e6:,.0f}" if total else f"{done / 1e6:,.0f}"
            logger.info(f"{what}: {share} MB")

    with contextlib.ExitStack() as stack:
        yield show
