"""Who may ask: API keys, at the door of every route but /health."""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from nanoray.serve.errors import APIError
from nanoray.serve.serve_config import is_loopback

OPEN_PATHS = ("/health",)


class RequireKey:
    """Answers 401 to whoever has none of the keys.

    A key comes as a bearer token, as OpenAI's clients send it, or as the password of HTTP's basic
    login, for which browsers ask their user: so the chat page is behind the same keys. A server
    without keys answers its own machine only, whatever address it listens on.
    """

    def __init__(self, app: ASGIApp, key_hashes: Sequence[str]) -> None:
        self.app, self.key_hashes = app, list(key_hashes)

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
            return client is not None and is_loopback(client[0])
        return self._has_key(scope)

    def _has_key(self, scope: Scope) -> bool:
        """Compare what the request brings with every key, in a time that tells nothing."""
        headers = dict(scope["headers"])
        kind, _, value = headers.get(b"authorization", b"").partition(b" ")
        given = value.strip()
        if kind.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != b"bearer":
            return False
        hashed = hashlib.sha256(given).hexdigest()
        return sum(secrets.compare_digest(hashed, known) for known in self.key_hashes) > 0
