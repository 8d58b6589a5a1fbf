"""Serves the page: a socket, the request guard, and the web server in the main thread."""

import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from nicegui import app, ui

from manychar.network.endpoints import is_loopback, require_loopback
from manychar.observability.dashboard.data_source import DataSource
from manychar.observability.dashboard.page import register
from manychar.observability.dashboard.request_guard import RequestGuard
from manychar.processes.errors import user_errors


def listen(host: str, port: int, *, insecure: bool) -> socket.socket:
    """Return a socket; other machines can reach it only if `insecure`. Raises UserError."""
    require_loopback(host, "--host", insecure=insecure)
    with user_errors(f"cannot listen on {host}:{port}", "choose another --port"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)


def url_of(listening: socket.socket) -> str:
    """Return the page's address."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(source: DataSource, listening: socket.socket) -> None:
    """Serve the page until a signal ends it, which is then raised again."""
    web = FastAPI(openapi_url=None)
    register(lambda: source.view)
    flags: Any = {"dark": None, "tailwind": False, "show_welcome_message": False}
    ui.run_with(web, language="en-US", **flags)
    guard = RequestGuard(web, any_host=not is_loopback(listening.getsockname()[0]))
    options: Any = {"log_level": "error", "server_header": False, "timeout_graceful_shutdown": 1}
    app.timer(source.interval, source.turn)
    try:
        uvicorn.Server(uvicorn.Config(guard, **options)).run(sockets=[listening])
    finally:
        source.close()
