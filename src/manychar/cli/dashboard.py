"""The command `dashboard`."""

import logging

from manychar.cli.console import write
from manychar.cli.options import ConnectTimeout, Host, Insecure, Key, Port, Watched
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8577


def dashboard(
    source: Watched,
    port: Port = DEFAULT_PORT,
    host: Host = "127.0.0.1",
    insecure: Insecure = False,
    connect_timeout: ConnectTimeout = 10.0,
    key: Key = None,
) -> None:
    """Serve a page that shows a run: losses, speed, workers, samples, hidden units."""
    pin("portable")
    try:
        from manychar.observability.dashboard.http_server import check_host, listen, serve, url_of
    except ModuleNotFoundError as error:
        raise UserError(
            f"the page needs {error.name}, not installed: pip install 'manychar[dashboard]'"
        ) from None
    from manychar.network.client_identity import find_key
    from manychar.observability.dashboard.data_source import open_source

    check_host(host, insecure=insecure)
    if insecure:
        logger.info(
            f"--insecure: everyone who can reach {host} sees this run, and samples of its text"
        )
    listening = listen(host, port)
    page = open_source(source, find_key(key), connect_timeout=connect_timeout)

    def ready() -> None:
        write(f"{url_of(listening)}\n")
        logger.info("serving the page until Ctrl-C")

    serve(page, listening, ready=ready)
