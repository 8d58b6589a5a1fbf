"""The command `train`, run for a Python program: in a thread, or to its end."""

import dataclasses
import threading
from collections.abc import Callable

from manychar.numerics.option import option
from manychar.observability.notebook import OnProgress, progress_output
from manychar.processes.subcommand import STOP_AGAIN_AFTER, Command

LOOK_EVERY = 0.05  # seconds between two looks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What a call shows while a run trains, and whether it waits for the end."""

    callback: OnProgress | None = option(None, "Called in a thread with progress.", roles=())
    quiet: bool = option(default=False, text="Print warnings only.", roles=())
    wait: bool = option(default=True, text="False: see `Run.join` and `Run.stop`.", roles=())

    def __post_init__(self) -> None:
        if not (self.callback is None or callable(self.callback)):
            raise TypeError(f"callback is {self.callback!r:.40}; allowed: a function")
        for name, value in (("quiet", self.quiet), ("wait", self.wait)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} is {value!r:.40}; allowed: True, False")


class TrainingCommand:
    """The command `train` with these words; its samples go to standard output.

    It is not a Thread: an interrupted `Thread.join` marks a thread that runs as ended (before
    Python 3.13).
    """

    def __init__(self, words: list[str], shown: Shown, *, given: bytes, endless: bool) -> None:
        self._shown, self._endless = shown, endless
        self._ended = threading.Event()
        self._error: BaseException | None = None
        shows = [shown.callback, None if shown.quiet else progress_output()]
        calls = [show for show in shows if show is not None]
        on_progress = (lambda values: [call(values) for call in calls]) if calls else None
        often = ["--log-every=1"] * bool(calls)  # the caller's own comes after it
        self._command = Command(
            *("train", *often, *words), given=given, on_progress=on_progress, quiet=shown.quiet
        )

    def begin(self, is_ready: Callable[[], bool]) -> None:
        """Train to the end, or in a thread, and return as soon as `is_ready`.

        Where that is interrupted, the training ends: its caller has nothing to stop it with.
        """
        thread = threading.Thread(target=self._run, daemon=True)
        try:
            (self._run if self._shown.wait else thread.start)()
            self.wait_for(is_ready)
        except BaseException:
            if self.is_alive():
                self.stop()
                try:
                    while not self._ended.wait(STOP_AGAIN_AFTER) and self._command.is_running():
                        self.stop()
                finally:  # without effect unless interrupted again
                    self._command.kill()
            raise

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def stop(self) -> None:
        """Have it end its step, write a checkpoint and end."""
        self._command.stop()

    def wait_for(self, is_ready: Callable[[], bool]) -> None:
        """Wait for the end, or until `is_ready`; raise what the training has raised."""
        while self.is_alive() and not (is_ready() or self._command.is_calling_back()):
            self._ended.wait(LOOK_EVERY)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for piece in self._command.output():
                if not self._shown.quiet:
                    print(piece, end="", flush=True)
        except BaseException as error:
            if not (self._endless and isinstance(error, KeyboardInterrupt)):  # its way to end
                is_wrapped = isinstance(error.__cause__, StopIteration)  # the callback's
                self._error = error.__cause__ if is_wrapped else error
        finally:
            self._ended.set()
