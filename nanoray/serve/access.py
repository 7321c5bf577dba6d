"""Who may ask: API keys, at the door of every route but /health."""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from nanoray.serve.errors import APIError
from nanoray.serve.serve_config import is_loopback

OPEN_PATHS = ("/health",)


class RequireKey:
    """Answers 401 to whoever has none of the keys.

    A key comes as a bearer token, as OpenAI's clients send it, or as the password of HTTP's basic
    login, for which browsers ask their user: so the chat page is behind the same keys. A server
    without keys answers its own machine only, whatever address it listens on; and of what runs
    there, not the pages of other sites in a browser.
    """

    def __init__(
        self, app: ASGIApp, key_hashes: Sequence[str], cors_origins: Sequence[str] = ()
    ) -> None:
        self.app, self.key_hashes = app, list(key_hashes)
        self.cors_origins = set(cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] not in ("http", "websocket") or self._may_pass(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        error = APIError(
            401,
            "Give a valid API key: 'Authorization: Bearer KEY'."
            if self.key_hashes
            else "This server has no API keys, and answers only its own machine.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": 'Basic realm="nanoray"'},
        )
        await error.response()(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        """Say whether a request needs no key, or has one."""
        if scope["path"] in OPEN_PATHS:
            return True
        if not self.key_hashes:
            client = scope.get("client")
            return client is not None and is_loopback(client[0]) and self._is_at_home(scope)
        return self._has_key(scope)

    def _is_at_home(self, scope: Scope) -> bool:
        """Say whether no other site has sent a browser here, by a request or by a name for it."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin", "")
        if host and not is_loopback(name_in(f"//{host}")):
            return False
        if origin in self.cors_origins or "*" in self.cors_origins:
            return True
        return not origin or is_loopback(name_in(origin))

    def _is_foreign(self, headers: dict[bytes, bytes]) -> bool:
        """Say whether the page of another site has sent a browser here."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or origin in self.cors_origins or "*" in self.cors_origins:
            return False
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            return site == b"cross-site"
        host = headers.get(b"x-forwarded-host", headers.get(b"host", b"")).decode("latin-1")
        return name_in(origin) != name_in(f"//{host}")

    def _has_key(self, scope: Scope) -> bool:
        """Compare what the request brings with every key, in a time that tells nothing."""
        headers = dict(scope["headers"])
        kind, _, value = headers.get(b"authorization", b"").partition(b" ")
        given = value.strip()
        if kind.lower() == b"basic":
            if self._is_foreign(headers):
                return False  # the browser has brought its login along
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != b"bearer":
            return False
        hashed = hashlib.sha256(given).hexdigest()
        return sum(secrets.compare_digest(hashed, known) for known in self.key_hashes) > 0


def name_in(address: str) -> str:
    """Give the name of the host in an address; empty where there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
