"""What the chat page may send: Gradio takes more than the page needs, and bodies of any size."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanoray.serve.errors import APIError
from nanoray.serve.settings import ApiSettings

POSTS = ("queue/join", "run/predict", "cancel", "reset")
"""Those of Gradio's routes that the page posts to. Others take files, or leave some on the disk."""
MOST_BYTES = ApiSettings.most_body_bytes


class OnlyThePage:
    """Refuses what the page under `path` never sends: other posts, and bodies that are too long."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it, at the latest when too much of its body has come."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{self.path}/"):
            await self.app(scope, receive, send)
            return
        route = scope["path"].removeprefix(f"{self.path}/gradio_api/").rstrip("/")
        if scope["method"] not in ("GET", "HEAD") and route not in POSTS:
            error = APIError(404, "The chat page takes no files, and nothing else of this kind.")
            await error.response()(scope, receive, send)
            return
        await self._pass_short(scope, receive, send)

    async def _pass_short(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def receive_some() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes <= MOST_BYTES:
                return message
            return {"type": "http.disconnect"}

        async def send_unless_refused(message: Message) -> None:
            if num_bytes <= MOST_BYTES:
                await send(message)

        try:
            await self.app(scope, receive_some, send_unless_refused)
        finally:
            if num_bytes > MOST_BYTES:
                error = APIError(413, f"The body is larger than {MOST_BYTES} bytes. Send less.")
                await error.response()(scope, receive, send)
