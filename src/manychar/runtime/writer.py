"""Writes checkpoints in a thread of their own, beside the loop, and reports each."""

import contextlib
import queue
import threading
from typing import Self

from manychar.numerics.train import State
from manychar.runtime.checkpoint import checkpoint_path, list_checkpoints, write_checkpoint
from manychar.runtime.errors import because
from manychar.runtime.resume import Beginning
from manychar.runtime.run_directory import RunDirectory
from manychar.runtime.wake import Wake

PENDING_CHECKPOINTS = 2


class Writer:
    """Writes states in order; a state is never written to again, so no lock is needed."""

    def __init__(self, directory: RunDirectory, beginning: Beginning, wake: Wake) -> None:
        self._directory = directory
        self._vocabulary = beginning.checkpoint.vocabulary
        self._journal = beginning.journal
        self._wake = wake
        self._states: queue.Queue[State | None] = queue.Queue(PENDING_CHECKPOINTS)
        self._news: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="checkpoints")

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until everything is written."""
        self._states.put(None)
        self._thread.join()

    def write(self, state: State) -> None:
        """Have a state written; waits where the disk is PENDING_CHECKPOINTS behind.

        The journal up to it is flushed here, and made durable before the checkpoint has its name.
        """
        with contextlib.suppress(OSError):  # the thread's sync meets the same error, and reports it
            self._journal.flush()
        self._states.put(state)

    def news(self) -> list[tuple[int, str]]:
        """Return (step, failure) of what was tried since the last call; no failure is ''."""
        news = []
        while not self._news.empty():
            news.append(self._news.get())
        return news

    def _work(self) -> None:
        while (state := self._states.get()) is not None:
            failure = ""
            try:
                self._write(state)
            except OSError as error:
                failure = because(error)
            except Exception as error:  # the loop says it, and ends the run
                failure = repr(error)
            self._news.put((state.step, failure))
            self._wake.now()

    def _write(self, state: State) -> None:
        directory = self._directory
        path = checkpoint_path(directory.checkpoints, state.step)
        self._journal.sync()
        if not path.exists():
            write_checkpoint(path, directory.definition, self._vocabulary, state)
        kept = directory.settings.keep_checkpoints
        old = [path for step, path in list_checkpoints(directory.checkpoints) if step > 0]
        for path in old[:-kept] if kept else []:
            path.unlink()
