"""The command that serves a page to watch a run by."""

import logging
from typing import Annotated

import typer

from manychar.cli.console import write
from manychar.cli.options import Key, Patience
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

logger = logging.getLogger(__name__)


DEFAULT_PORT = 8577


def dashboard(
    source: Annotated[
        str, typer.Argument(metavar="ENDPOINT|RUN", help="A live server, or a run directory.")
    ],
    port: Annotated[
        int, typer.Option(help="Where the page is served; 0: any port.", min=0, max=65_535)
    ] = DEFAULT_PORT,
    host: Annotated[str, typer.Option(help="The address it is served at.")] = "127.0.0.1",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve it where strangers can look.")
    ] = False,
    patience: Patience = 10.0,
    key: Key = None,
) -> None:
    """Serve a page to watch a run by: losses, speed, workers, samples, hidden units."""
    pin("portable")
    try:
        from manychar.observability.dashboard.http_server import check_host, listen, serve, url_of
    except ModuleNotFoundError as error:
        raise UserError(
            f"the page needs {error.name}, which is not there: pip install 'manychar[dashboard]'"
        ) from None
    from manychar.network.client_identity import find_key
    from manychar.observability.dashboard.data_source import open_feed

    check_host(host, insecure=insecure)
    if insecure:
        logger.info(
            f"--insecure: whoever can reach {host} can look at this run, and at samples of its text"
        )
    listening = listen(host, port)
    history, feed = open_feed(source, find_key(key), patience=patience)

    def ready() -> None:
        write(f"{url_of(listening)}\n")
        logger.info("the page is there until Ctrl-C")

    serve(history, feed, listening, ready=ready)
