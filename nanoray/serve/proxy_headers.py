"""What any client could do to Ray Serve's proxy, which stands before nanoray and asks for no key.

Its headers cut an answer off without OpenAI's error, keep one going whose client has left, or end
in an error 500 where they are not text. Its list of routes tells what is served.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

SETTINGS = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "nanoray.serve.proxy_headers.middlewares"}
"""What has Serve call `middlewares`: variables of its controller, whose children proxies are."""
STEERING = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
}
"""As they are spelled with dashes; Serve takes an underscore for one."""
ROUTES = "/-/routes"
"""Serve answers at this very path."""
REQUEST_ID = b"x-request-id"
MOST_ID_BYTES = 128


def middlewares() -> list[Middleware]:
    """Give what Serve puts before its proxy."""
    return [Middleware(PlainHeaders)]


class PlainHeaders:
    """Passes requests on without what is Serve's own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if "headers" in scope:
            kept = [pair for pair in scope["headers"] if not steers(*pair)]
            scope = {**scope, "headers": kept}
        if scope.get("path") == ROUTES:  # nanoray's to answer, if there is a key, with 401
            scope = {**scope, "path": f"{ROUTES}/", "raw_path": f"{ROUTES}/".encode()}
        await self.app(scope, receive, send)


def steers(name: bytes, value: bytes) -> bool:
    """Say whether a header is one of Serve's own; an id of a request is, if it is not plain."""
    name = name.lower().replace(b"_", b"-")
    if name == REQUEST_ID:
        is_plain = value.isascii() and value.decode("ascii").isprintable()
        return not is_plain or len(value) > MOST_ID_BYTES
    return name in STEERING or not name.isascii()
