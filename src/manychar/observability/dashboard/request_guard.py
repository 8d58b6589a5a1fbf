"""Answers the requests of a browser that opened this page, and refuses those of other pages.

A page of another site can have a browser request any address, this one too (with DNS rebinding
even under a name of that site). So the Host has to be this machine's loopback, and an Origin has
to be this page's own. What is sent may load nothing from elsewhere.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from manychar.network.endpoints import is_loopback

# Vue compiles its templates in the browser, hence the two exceptions for scripts.
POLICY = """default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval';
 style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:;
 base-uri 'none'; form-action 'none'; frame-ancestors 'none'"""
HEADERS = {
    "content-security-policy": POLICY.replace("\n", ""),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class RequestGuard:
    """Wraps an ASGI application. With `any_host`, every Host header is accepted."""

    def __init__(self, application: ASGIApp, *, any_host: bool) -> None:
        self._application = application
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        reason = self._refusal(Headers(scope=scope)) if "headers" in scope else ""
        if not reason:
            await self._application(scope, receive, send_with_policy)
        elif scope["type"] == "websocket":
            await WebSocketClose(1008)(scope, receive, send)
        else:
            await PlainTextResponse(f"{reason}\n", 403)(scope, receive, send_with_policy)

    def _refusal(self, headers: Headers) -> str:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not (self._any_host or is_loopback(_name_in(hosts[0]))):
            return "not a name of this page: open it by http://127.0.0.1"
        if any(urlsplit(origin).netloc != hosts[0] for origin in headers.getlist("origin")):
            return "requested by another page"
        return ""


def _name_in(host: str) -> str:
    """Return the name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
