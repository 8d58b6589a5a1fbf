"""The command `train`."""

from typing import TYPE_CHECKING, Any

from manychar.cli.options import TextFiles
from manychar.cli.run_setup import exit_with, pin_run, resume_line, run_of
from manychar.fleet.launch_options import Reporting
from manychar.network.endpoints import require_safe
from manychar.network.router import Router
from manychar.numerics.option import as_flags, options_of
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.processes.queued_stream import queued
from manychar.processes.subcommand import as_pasted, program
from manychar.processes.usable_cores import hint_at_cores, usable_cores

if TYPE_CHECKING:
    from manychar.storage.run_directory import RunDirectory


def train(text: TextFiles = None, **flags: Any) -> None:
    """Train with a server and its workers on this machine."""
    path = pin_run(flags)
    _check_relays(flags, flags.get("workers"))
    if (bind := flags.get("bind")) is not None:
        require_safe(bind, keys=False, insecure=flags.get("insecure", False))
        if "resume" not in flags:
            Router(bind, None).close()  # before a run directory is made for nothing
    from manychar.fleet.local_fleet import LocalFleet
    from manychar.observability.exporters import exported
    from manychar.observability.progress import ProgressDisplay
    from manychar.storage.run_directory import removed_if_refused

    names = ["workers"] * (path is not None)  # config.json keeps those that the run began with
    names += options_of(Reporting, role="train")
    known = as_flags({name: flags.get(name) for name in names})
    if path is not None and (computes := flags.get("compute")) is not None:
        known.append("--compute" if computes else "--no-compute")
    again = f"{program()} {as_pasted('train', *known)}"
    with exported(flags) as on_status:  # before a run directory is made
        directory = run_of(path, text, flags)
        resume_line(directory, again)
        hint_at_cores("--workers", directory.operation.workers)
        display = ProgressDisplay(directory, flags.get("log_every"))
        with removed_if_refused(directory), queued("stdout"), display:
            relays = relays_of(directory, flags)
            finish = LocalFleet(directory, display, on_status, bind=bind, relays=relays).run()
    exit_with(finish, directory, again=again)


def relays_of(directory: "RunDirectory", flags: dict[str, Any]) -> int:
    """Return how many relays were asked for, or are predicted to shorten a step here."""
    from manychar.fleet.capacity import by_relays, relays_that_pay
    from manychar.protocol.run_spec import dimensions_of

    workers, asked = directory.operation.workers, flags.get("relays")
    _check_relays(flags, workers)
    if asked is not None or flags.get("compute"):
        return asked or 0
    size = dimensions_of(directory.definition, len(directory.corpus()[0]))
    seconds = by_relays(size, workers, usable_cores())
    if relays := relays_that_pay(seconds):
        with_relays, without = (f"{1000 * seconds[each]:.2g}" for each in (relays, 0))
        logger.info(
            f"{relays} relays between the server and {workers} workers: a step is predicted to take"
            f" {with_relays} ms instead of {without}; --relays 0 starts none"
        )
    return relays


def _check_relays(flags: dict[str, Any], workers: int | None) -> None:
    """Raise UserError for relays that cannot be; `workers` may not be known yet."""
    asked = flags.get("relays", 0)
    if asked and flags.get("compute"):
        raise UserError(f"--relays={asked}, --compute: with relays the server does not compute")
    if workers is not None and asked > workers:
        raise UserError(f"--relays={asked}: more than --workers, {workers}")
