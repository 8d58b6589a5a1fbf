"""Several workers of this machine for a server elsewhere: `worker --processes N`."""

from signal import SIGTERM

from manychar.network.event_loop import EventLoop
from manychar.processes import log
from manychar.processes.child_process import how_it_ended
from manychar.processes.errors import CRASHED, RUN_FAILED, STOPPED
from manychar.processes.log import logger
from manychar.processes.signals import STOPS
from manychar.processes.supervisor import ProcessSlot, Supervisor

SECONDS_TO_END = 10.0


class WorkerPool:
    """Runs a command for each worker's name; a worker that crashes is started again."""

    def __init__(self, commands: dict[str, list[str]]) -> None:
        self._slots = [ProcessSlot(name=name, arguments=words) for name, words in commands.items()]
        self._code = 0
        self._stopped_by: int | None = None

    def run(self) -> int:
        """Run the workers until all have ended, and return the largest exit code."""
        with EventLoop() as loop:
            loop.on_signal(self._signalled, *STOPS)
            self._supervisor = Supervisor(loop, on_end=self._ended, env=log.FOR_A_PARENT)
            try:
                for slot in self._slots:
                    self._supervisor.start(slot)
                while not (self._stopped_by or all(slot.is_empty for slot in self._slots)):
                    loop.turn()
            finally:
                self._supervisor.stop(SECONDS_TO_END, self._stopped_by or SIGTERM)
        return self._code

    def _signalled(self, number: int) -> None:
        self._code = STOPS[number]
        self._stopped_by = number

    def _ended(self, slot: ProcessSlot, code: int) -> None:
        if self._stopped_by:
            return
        if code >= 0 and code != CRASHED:
            if code not in (0, STOPPED):
                logger.warning(f"{slot.name} ended {how_it_ended(code)}")
            self._code = max(self._code, code)
        elif failure := self._supervisor.restart(slot, code):
            logger.error(failure)
            self._code = max(self._code, RUN_FAILED)
