"""Who may talk to the annotation page: the browser that opened the printed link, on this machine or through `ssh -L`.

A page of another site can reach a server on 127.0.0.1: directly, and by a name that it resolves to this address (DNS
rebinding). So the Host must be this machine's, the Origin of what changes something must be the page's own, and nothing
is served without the cookie, which other sites' requests do not carry (SameSite=Strict).
https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
READS = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# a redirect would belong to the site that the link was on, and carry no Strict cookie
ENTRY = (
    '<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/">'
    '<link rel="icon" href="data:,"><title>edgedistill annotate</title>'
)
USED = "This link was used already. Go on in the browser that opened it, or start `edgedistill annotate` again."


def _secret() -> str:
    return secrets.token_urlsafe(32)


@dataclass(kw_only=True)
class Access:
    """The token of the printed link, and the cookie that it is exchanged for once.

    Attributes:
        cookie: the cookie's name; a browser sends the cookies of one host to all of its ports.
    """

    cookie: str
    token: str = field(default_factory=_secret)
    used: bool = False
    _session: str = field(default_factory=_secret)

    def answer(self, request: Request) -> Response | None:
        """What is answered to a request that goes no further; None for one that does."""
        if (status := _refused(request)) is not None:
            return PlainTextResponse("refused: this request does not come from the page", status)
        has_cookie = _equal(request.cookies.get(self.cookie, ""), self._session)
        token = request.query_params.get("token")
        if request.url.path != "/" or request.method != "GET" or token is None:
            text = "Open the link that `edgedistill annotate` printed."
            return None if has_cookie else PlainTextResponse(text, 403)
        if not _equal(token, self.token):
            return PlainTextResponse("This link is not the one that `edgedistill annotate` printed.", 403)
        if self.used and not has_cookie:
            return PlainTextResponse(USED, 403)
        self.used = True
        response = HTMLResponse(ENTRY)
        response.set_cookie(self.cookie, self._session, httponly=True, samesite="strict")
        return response


def guarded(app: ASGIApp, access: Access) -> ASGIApp:
    """The application behind the checks; every answer, also one of an error, gets HEADERS."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("the page speaks http alone")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, text in HEADERS.items():
                    headers[name] = text
            await send(message)

        response = access.answer(Request(scope, receive))
        await (response or app)(scope, receive, send_with_headers)

    return guard


def _refused(request: Request) -> int | None:
    """The status of a request whose Host, Origin or Sec-Fetch-Site is not the page's; None for one to go on with."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not LOCAL.fullmatch(host):
        return 421
    if origin is None and request.method not in READS:
        return 403
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        return 403
    # a page on another port of this machine is the same site, and its requests carry the cookie
    site = request.headers.get("sec-fetch-site", "same-origin")
    is_link = request.url.path == "/" and request.method == "GET"
    return None if is_link or site in ("same-origin", "none") else 403


def _equal(text: str, secret: str) -> bool:
    return secrets.compare_digest(text.encode(), secret.encode())
