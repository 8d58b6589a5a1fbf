"""Serves the page: a socket, the gate, and the web server in this process's main thread."""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from nicegui import ui

from manychar.observability.dashboard.data_source import Feed
from manychar.observability.dashboard.page import register
from manychar.observability.dashboard.request_guard import Gate, is_loopback
from manychar.observability.dashboard.run_history import History
from manychar.processes.errors import REFUSED_FOR_SAFETY, UserError, because

SECONDS_TO_END = 1
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<rect width='16' height='16' rx='3' fill='#1f5fb8'/>"
    "<path d='M3 12 6 5l2 5 2-3 3 5' fill='none' stroke='#fff' stroke-width='1.6'/></svg>"
)


def check_host(host: str, *, insecure: bool) -> None:
    """Refuse to serve where strangers can look, unless told to."""
    if not is_loopback(f"[{host}]" if ":" in host else host) and not insecure:
        raise UserError(
            f"{host} can be reached from other machines, and nothing checks who comes: leave"
            " --host out and reach the page by `ssh -L` (or add --insecure if you trust everyone"
            " on the network)",
            code=REFUSED_FOR_SAFETY,
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises UserError where that cannot be."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {because(error)}; choose another --port"
        ) from None
    return listening


def url_of(listening: socket.socket) -> str:
    """Return the page's address."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(
    history: History, feed: Feed, listening: socket.socket, *, ready: Callable[[], None]
) -> None:
    """Serve the page until a signal ends it, which is then raised again."""
    web = FastAPI(openapi_url=None)
    register(history)
    ui.run_with(
        web,
        title="manychar",
        favicon=ICON,
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
    )
    anywhere = not is_loopback(url_of(listening).removeprefix("http://").rstrip("/"))
    config = uvicorn.Config(
        Gate(web, anywhere=anywhere),
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_END,
    )
    feed.start()
    ready()
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        feed.stop()
