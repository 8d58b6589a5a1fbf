"""A server that has to resume from an earlier checkpoint: it notes so, and executes itself anew."""

import json
import logging
import os
from collections.abc import Mapping, Sequence

from manychar.processes.child_process import PROGRAM
from manychar.processes.errors import CRASHED, RUN_FAILED, UserError, because
from manychar.protocol.effects import Finish, ResumeBefore
from manychar.storage.run_directory import RunDirectory

PENDING_STOP = "MANYCHAR_PENDING_STOP"

logger = logging.getLogger(__name__)


def note_resume_before(directory: RunDirectory, effect: ResumeBefore) -> RunDirectory:
    """Note durably where the next server resumes, and who is banned.

    Raises UserError where the disk will not have it: without the note, the next server would
    resume from a checkpoint that is not to be trusted.
    """
    directory = directory.with_facts(resume_before=effect.step, banned=dict(effect.banned))
    try:
        directory.write_config()
    except OSError as error:
        raise UserError(
            f"{directory.path}: {because(error)}: could not note that checkpoints of step"
            f" {effect.step} and later are wrong; remove them, then resume the run",
            code=RUN_FAILED,
        ) from None
    return directory


def execute_anew(
    arguments: Sequence[str], *, environment: Mapping[str, str], asked: Finish | None
) -> Finish:
    """Replace this process by a new server, which resumes earlier; return only where that fails.

    A stop that was asked for is handed on: the new server first sets aside the checkpoints that
    are wrong.
    """
    logger.info("this server executes itself anew")
    pending = {} if asked is None else {PENDING_STOP: json.dumps([asked.code, asked.reason])}
    command, variables = [*PROGRAM, *arguments], {**os.environ, **environment, **pending}
    try:
        os.execve(command[0], command, variables)  # noqa: S606 - this program itself
    except OSError as error:
        reason = f"the server could not execute itself anew: {because(error)}; resume the run"
        return Finish(CRASHED, reason)


def pending_stop() -> Finish | None:
    """Return the stop that this process was asked for before it executed itself anew."""
    text = os.environ.pop(PENDING_STOP, "")
    return Finish(*json.loads(text)) if text else None
