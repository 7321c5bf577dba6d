"""Starting and stopping servers for tests."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.engine_thread import EngineThread
from nanoray.model.gpt import GPT
from nanoray.serve.api import Api
from nanoray.serve.backend import ServedModel, engine_steps, engine_works
from nanoray.serve.chat_client import ChatClient
from nanoray.serve.settings import ApiSettings
from nanoray.serve.ui import add_page
from tests.chat_run import chat_model, tokenizer

MODEL = "chat/sft"


@dataclass
class LocalServer:
    """A running server, and what is behind it."""

    url: str
    api: Api
    thread: EngineThread
    recorder: "Recorder"

    def get(self, path: str, **options) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)

    def post(self, path: str, body: object, **options) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def metric(self, name: str) -> float:
        """Read the sum of a metric over its labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


class Recorder:
    """Notes the bodies of what is asked, and passes everything on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.bodies = app, list[bytes]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting() -> Message:
            message = await receive()
            if scope["type"] == "http" and scope["path"].startswith("/v1/chat"):
                self.bodies += [message["body"]] if message.get("body") else []
            return message

        await self.app(scope, noting, send)


@contextmanager
def serve(
    settings: ApiSettings,
    *,
    page: bool = False,
    stuck_seconds: float = 60.0,
    port: int = 0,
    models: dict[str, GPT] | None = None,
    **engine_fields,
) -> Iterator[LocalServer]:
    """Serve the model that knows its answers by heart, or others, until the end of the block."""
    fields = {"max_sequences": 16, "step_tokens": 256, **engine_fields}
    threads = {
        name: EngineThread(Engine(model, tokenizer(), EngineConfig(**fields)))
        for name, model in (models or {MODEL: chat_model()}).items()
    }
    first = next(iter(threads.values()))
    context = first.engine.context_tokens
    served = {
        name: ServedModel(
            name,
            tokenizer(),
            context,
            partial(engine_steps, thread, "here"),
            step=10,
            works=partial(engine_works, thread, stuck_seconds),
        )
        for name, thread in threads.items()
    }
    api = Api(served, settings)
    listener = socket.create_server(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def build() -> FastAPI:  # without a loop that runs, Gradio makes some and leaves them
        app = api.app()
        return add_page(app, ChatClient(url), list(served), context - 1) if page else app

    with ThreadPoolExecutor(1) as other:  # in this one Playwright may have a loop of its own
        recorder = Recorder(other.submit(lambda: asyncio.run(build())).result())
    config = uvicorn.Config(recorder, log_level="warning", lifespan="on" if page else "off")
    running = uvicorn.Server(config)
    worker = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    worker.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield LocalServer(url, api, first, recorder)
    finally:
        running.should_exit = True
        worker.join()
        for thread in threads.values():
            thread.stop()
