"""Who may ask: API keys, at the door of every route but /health."""

import base64
import binascii
import secrets
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from nanoray.serve.errors import APIError

OPEN_PATHS = ("/health",)


class RequireKey:
    """Answers 401 to whoever has none of the keys.

    A key comes as a bearer token, as OpenAI's clients send it, or as the password of HTTP's basic
    login, for which browsers ask their user: so the chat page is behind the same keys.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        is_open = scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS
        # A browser asks with OPTIONS, without the key, whether it may send one.
        if is_open or not self.keys or scope.get("method") == "OPTIONS" or self._has_key(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        error = APIError(
            401,
            "Give a valid API key: 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": 'Basic realm="nanoray"'},
        )
        await error.response()(scope, receive, send)

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
        # Each key is compared, so that the time does not tell which one was close.
        return sum(secrets.compare_digest(given, key) for key in self.keys) > 0
