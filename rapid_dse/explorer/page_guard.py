"""Who may ask: the browser that was given this start's token, on this machine, from the page's own address."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
SAFE = ("GET", "HEAD")
TOKEN = "token"


@dataclass(frozen=True)
class Access:
    """What a request must show.

    Attributes:
        port: that the page answers on, on 127.0.0.1.
        token: of this start.
    """

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def hosts(self) -> tuple[str, str]:
        """The names by which the page may be asked for."""
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"

    @property
    def cookie(self) -> str:
        """The cookie that holds the token; cookies are one for all ports of a host, so that its name has the port."""
        return f"rapid_dse_{self.port}"

    @property
    def address(self) -> str:
        """What a browser is given: the page with the token."""
        return f"http://{self.hosts[0]}/?{TOKEN}={self.token}"

    def refusal(self, method: str, headers: Headers) -> str | None:
        """Why a request is refused, whatever its token; None where it is not."""
        host, origin = str(headers.get("host", "")), headers.get("origin")
        if host not in self.hosts:
            return f"Host: {host[:80]!r} is not this page; allowed: {', '.join(self.hosts)}"
        if origin is not None and origin not in [f"http://{host}" for host in self.hosts]:
            return f"Origin: {origin[:80]!r} is not this page; allowed: this page's own"
        if method not in SAFE and origin is None:
            return "Origin: is missing; allowed: this page's own"
        return None

    def is_token(self, text: str) -> bool:
        """Whether a text is the token, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(text.encode(), self.token.encode())


@dataclass(frozen=True)
class Guard:
    """Around the application: refuses what ``Access`` does not allow, takes the token for a cookie, adds headers."""

    app: ASGIApp
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":  # there are no sockets here
            refused = self._refused(Request(scope))
            answer: ASGIApp | Response = self.app if refused is None else refused
            await answer(scope, receive, _with_headers(send))

    def _refused(self, request: Request) -> Response | None:
        why = self.access.refusal(request.method, request.headers)
        if why is not None:
            return PlainTextResponse(why, 403)
        given = request.query_params.get(TOKEN)
        if given is not None and request.url.path == "/" and self.access.is_token(given):
            welcome = RedirectResponse("/", 303)
            welcome.set_cookie(self.access.cookie, self.access.token, httponly=True, samesite="strict")
            return welcome
        if not self.access.is_token(_cookie(request, self.access.cookie)):
            return PlainTextResponse("no token of this start; open the address that python -m rapid_dse.explore printed", 403)
        return None


def _cookie(request: Request, name: str) -> str:
    try:
        cookie = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookie[name].value if name in cookie else ""


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sent
