"""Who may ask for the page: a browser that was pointed at it, and no page from elsewhere.

A page of a stranger can have a browser ask any address, this one too (the stranger's own name may
even lead here: DNS rebinding). So the name that was asked for has to be this machine's loopback,
and where a page asks, that page has to be this one. What is sent may load nothing from elsewhere.
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Vue makes functions of its templates in the browser, hence the two exceptions for scripts."""

_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Gate:
    """Stands before an ASGI application. `anywhere`: the machine may be called by any name."""

    def __init__(self, application: Application, *, anywhere: bool) -> None:
        self._application = application
        self._anywhere = anywhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._application(scope, receive, send)
        elif reason := self.refusal(scope["headers"]):
            await _refuse(scope, send, reason)
        else:
            await self._application(scope, receive, _with_policy(send))

    def refusal(self, headers: list[tuple[bytes, bytes]]) -> str:
        """Return why a request with these headers is not answered, or ''."""
        hosts = _values(headers, b"host")
        if len(hosts) != 1 or not (self._anywhere or is_loopback(hosts[0])):
            return "not a name of this page: open it by http://127.0.0.1"
        for origin in _values(headers, b"origin"):
            if urlsplit(origin).netloc != hosts[0]:
                return "asked by another page"
        return ""


def is_loopback(host: str) -> bool:
    """Whether a Host header, a name with or without a port, is this machine's own loopback."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _values(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name.lower() == wanted]


def _with_policy(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return sending


async def _refuse(scope: Scope, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
