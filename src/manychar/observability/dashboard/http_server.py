"""Serves the page: a socket, and the web server in the main thread.

A page of another site can have a browser request any address, this one too (with DNS rebinding
even under a name of that site). So the Host has to be this machine's loopback, and a connection
for the page's data has to come from the page itself. The page may load nothing from elsewhere.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from nicegui import app, core, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response

from manychar.network.connection_limit import need_files
from manychar.network.endpoints import bracketed, is_loopback, require_loopback
from manychar.observability.dashboard.data_source import TURN_EVERY, DataSource
from manychar.observability.dashboard.page import register
from manychar.processes.errors import user_errors

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# Vue compiles its templates in the browser, hence the two exceptions for scripts.
POLICY = """default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval';
 style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:;
 base-uri 'none'; form-action 'none'; frame-ancestors 'none'"""
HEADERS = {
    "content-security-policy": POLICY.replace("\n", ""),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def listen(host: str, port: int, *, insecure: bool) -> socket.socket:
    """Return a socket; other machines can reach it only if `insecure`. Raises UserError."""
    require_loopback(host, "--host", insecure=insecure)
    need_files("a dashboard")
    with user_errors(f"cannot listen on {host}:{port}", "choose another --port or --host"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)


def url_of(listening: socket.socket) -> str:
    """Return the page's address."""
    host, port = listening.getsockname()[:2]
    return f"http://{bracketed(host)}:{port}/"


async def _with_policy(
    request: Request, answer: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await answer(request)
    response.headers.update(HEADERS)
    return response


def serve(source: DataSource, listening: socket.socket) -> None:
    """Serve the page until a signal ends it, which is then raised again."""
    web, host = FastAPI(openapi_url=None), listening.getsockname()[0]
    register(lambda: source.view)
    flags: Any = {"dark": None, "tailwind": False, "show_welcome_message": False}
    ui.run_with(web, language="en-US", **flags)
    core.sio.eio.cors_allowed_origins = None  # no page but that of the same Host
    web.middleware("http")(_with_policy)
    hosts = [*LOOPBACK, host] if is_loopback(host) else ["*"]
    web.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    options: Any = {"log_level": "error", "server_header": False, "timeout_graceful_shutdown": 1}
    app.timer(TURN_EVERY, source.turn)
    try:
        uvicorn.Server(uvicorn.Config(web, **options)).run(sockets=[listening])
    finally:
        source.close()
