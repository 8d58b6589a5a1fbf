"""The command `dashboard`."""

from typing import Annotated

from manychar.cli.console import write
from manychar.cli.options import ConnectTimeout, Insecure, Key, Watched
from manychar.numerics.option import Option
from manychar.processes.errors import needing
from manychar.processes.log import logger


def dashboard(
    source: Watched,
    port: Annotated[int, Option("Port of the page; 0: any.", least=0, most=65_535)] = 8577,
    host: Annotated[str, Option("Address to serve the page on.")] = "127.0.0.1",
    insecure: Insecure = False,
    connect_timeout: ConnectTimeout = 10.0,
    key: Key = None,
) -> None:
    """Serve a page that shows a run: losses, speed, workers, samples, hidden units."""
    with needing("dashboard", "the page"):
        from manychar.observability.dashboard.http_server import listen, serve, url_of
    from manychar.observability.dashboard.data_source import open_source

    listening = listen(host, port, insecure=insecure)
    if insecure:
        logger.info(f"--insecure: everyone who can reach {host} sees this run and its samples")
    page = open_source(source, key, connect_timeout=connect_timeout)
    write(f"{url_of(listening)}\n")
    logger.info("serving the page until Ctrl-C")
    serve(page, listening)
