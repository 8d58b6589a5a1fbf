"""Writes checkpoints in a thread beside the loop, and reports each."""

import contextlib
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from manychar.processes.errors import DISK_FULL, UserError, because
from manychar.protocol.effects import Save
from manychar.protocol.events import CheckpointWritten
from manychar.storage.checkpoint import checkpoint_path, list_checkpoints, write_checkpoint
from manychar.storage.recovery import ResumePoint
from manychar.storage.run_directory import RunDirectory

MOST_PENDING = 2  # beside the one that is being written
REPORT_EVERY = 2.0  # seconds, while a caller waits


class Writer(contextlib.ExitStack):
    """Writes states in order; a state is never written to again, so it can be shared as it is.

    Its end waits for what is being written.
    """

    def __init__(
        self, directory: RunDirectory, resume_point: ResumePoint, wake: Callable[[], None]
    ) -> None:
        super().__init__()
        self._directory = directory
        self._vocabulary = resume_point.checkpoint.vocabulary
        self._journal = resume_point.journal
        self._wake = wake
        self._thread = self.enter_context(ThreadPoolExecutor(1, "checkpoints"))
        self._writes: list[Future[CheckpointWritten]] = []

    def write(
        self, save: Save, waiting: Callable[[], None], *, spare: Collection[int] = ()
    ) -> None:
        """Have a state written; while the disk is MOST_PENDING behind, call `waiting` and wait.

        An old checkpoint whose step is in `spare` is not removed yet. The journal up to the state
        is flushed here, and made durable before the checkpoint; without it none is written.
        """
        fault = None
        try:
            self._journal.flush()
        except OSError as error:
            fault = error
        while len(pending := [each for each in self._writes if not each.done()]) > MOST_PENDING:
            if not wait(pending, REPORT_EVERY, FIRST_COMPLETED).done:
                waiting()
        write = self._thread.submit(self._result, save, frozenset(spare), fault)
        self._writes.append(write)
        write.add_done_callback(lambda _: self._wake())

    def news(self) -> list[CheckpointWritten]:
        """Return what became of each since the last call."""
        news = []
        while self._writes and self._writes[0].done():
            news.append(self._writes.pop(0).result())
        return news

    def _result(
        self, save: Save, spare: frozenset[int], fault: OSError | None
    ) -> CheckpointWritten:
        failure = f"its journal: {because(fault)}" if fault else ""
        try:
            if not fault:
                self._write(save, spare)
        except OSError as error:
            fault, failure = error, because(error)
        except UserError as error:
            failure = f"read back: {error}"
        except Exception as error:
            failure = repr(error)
        if failure:
            kept = [f"that of step {step:,} is kept" for step, _ in self._directory.resumable()]
            gone = f"no checkpoint is in {self._directory.path} any more"
            advice = (
                "if the run was moved, resume it where it is now; if it was removed, it is lost"
            )
            failure += f"; {kept[-1] if kept else f'{gone}; {advice}'}"
            if fault is not None and fault.errno in DISK_FULL:
                failure += "; make room on the disk, then resume the run"
        return CheckpointWritten(save.state.step, failure, save.for_recovery)

    def _write(self, save: Save, spare: frozenset[int]) -> None:
        directory, state = self._directory, save.state
        regular = checkpoint_path(directory.checkpoints, state.step)
        path = directory.recovery if save.for_recovery else regular
        self._journal.sync()
        if save.for_recovery or not path.exists():
            write_checkpoint(path, directory.definition, self._vocabulary, state)
        if save.for_recovery:
            return
        with contextlib.suppress(OSError):  # the next call tries again
            directory.recovery.unlink(missing_ok=True)
        kept = directory.operation.keep_checkpoints
        old = [(step, path) for step, path in list_checkpoints(directory.checkpoints) if step > 0]
        for step, path in old[:-kept] if kept else []:
            if step not in spare:
                with contextlib.suppress(OSError):  # the next call tries again
                    path.unlink()
