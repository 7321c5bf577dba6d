"""One request's way through the server: admitted, begun, streamed, ended, and always given back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from nanoray.config import InputError
from nanoray.inference.sampling import SamplingParams
from nanoray.serve.admission import Admission
from nanoray.serve.backend import ServedModel, Step
from nanoray.serve.errors import APIError, busy, to_json, unavailable
from nanoray.serve.server_metrics import ServerMetrics
from nanoray.serve.settings import ApiSettings

SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
UNDER_WAY: set[asyncio.Task[None]] = set()
"""What gives back after clients that have left: the event loop itself would forget it."""


class Generation:
    """The tokens of one prompt; `begin` it, iterate over it, and `close` it in any case."""

    def __init__(
        self,
        model: ServedModel,
        prompt: list[int],
        params: SamplingParams,
        settings: ApiSettings,
        metrics: ServerMetrics,
    ) -> None:
        self.model, self.params, self.settings = model, params, settings
        self.watch = metrics.watch(model.id, len(prompt), params.num_samples)
        self._steps = model.generate(prompt, params)
        self._first: Step | None = None
        self._open = set(range(params.num_samples))
        self._deadline = time.monotonic() + settings.answer_seconds

    async def begin(self) -> None:
        """Wait for the first token, so that what goes wrong before it has an HTTP status.

        Raises:
            APIError: the prompt is refused, or nothing came in time, or the model is not there.
        """
        self._first = await self._next()
        if self._first is None:
            raise not_begun()

    async def steps(self) -> AsyncIterator[Step]:
        """Yield what each step brings, up to the deadline, which leaves answers without an end."""
        step = self._first
        while step is not None:
            self._open -= {o.sample for o in step.outputs if o.finish_reason is not None}
            yield step
            step = await self._next() if self._open else None

    async def _next(self) -> Step | None:
        """Wait for the next step of the engine; gives None after the last, and at the deadline."""
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                step = await anext(self._steps, None)
        except TimeoutError:
            return None
        except (APIError, asyncio.CancelledError):
            raise
        except InputError as error:
            # Ray's error is one of ours too, and its text is a traceback.
            raise APIError(400, str(getattr(error, "cause", error)), "prompt") from error
        except Exception as error:  # of the replica, or of the way to it
            raise unavailable(f"The model's replica failed ({type(error).__name__}).") from error
        if step is not None:
            self.watch.observe(step)
            self.model.take_up(step.checkpoint)
        return step

    async def close(self) -> None:
        """Free the place in the engine."""
        self.watch.end()
        close = getattr(self._steps, "aclose", None)
        if close is not None:
            await close()


def not_begun() -> APIError:
    """Say that others are before this answer, or that the engine is slow."""
    return busy("The answer did not begin in time. Try again in a moment.", 10)


class Generations:
    """The generations of one request: one per prompt, all admitted together."""

    def __init__(self, admission: Admission, count: int) -> None:
        """Take a place for each answer.

        Raises:
            APIError: there is none.
        """
        self._ticket = admission.enter(count)
        self.all: list[Generation] = []
        self._beginning: list[asyncio.Task[None]] = []
        self._pumps: list[asyncio.Task[None]] = []
        """They wait for steps: a generator can be closed only when nobody waits for it."""
        self._closing: asyncio.Task[None] | None = None

    async def begin(self, make: list[Callable[[], Generation]]) -> None:
        """Make all, and wait until one has begun; closes all if that does not come about.

        The others may have to wait for its place in the engine.

        Raises:
            APIError: as of `Generation.begin`; none has begun in `first_token_seconds`.
        """
        try:
            for one in make:
                self.all.append(one())
            self._beginning = [asyncio.create_task(each.begin()) for each in self.all]
            patience = self.all[0].settings.first_token_seconds
            begun, _ = await asyncio.wait(
                self._beginning, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            if not begun:
                raise not_begun()
            for task in begun:
                task.result()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Give everything back, also if who asks for it is cancelled meanwhile.

        A client that leaves can cancel a request twice: once in its stream, once as it ends.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
            UNDER_WAY.add(self._closing)
            self._closing.add_done_callback(UNDER_WAY.discard)
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._ticket.leave()
        tasks = [*self._beginning, *self._pumps]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(generation.close() for generation in self.all))
        self.all = []

    async def merged(self) -> AsyncIterator[tuple[int, Step]]:
        """Yield the steps of all prompts as they come, with the number of the prompt."""
        if len(self.all) == 1:
            async for step in self.all[0].steps():
                yield 0, step
            return
        items: asyncio.Queue[tuple[int, Step | BaseException | None]] = asyncio.Queue(1)

        async def pump(number: int, generation: Generation) -> None:
            try:
                await self._beginning[number]
                async for step in generation.steps():
                    await items.put((number, step))
                await items.put((number, None))
            except Exception as error:
                await items.put((number, error))

        self._pumps = [asyncio.create_task(pump(*each)) for each in enumerate(self.all)]
        num_open = len(self._pumps)
        while num_open:
            number, item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
                continue
            yield number, item


class EventStream(StreamingResponse):
    """A stream of server-sent events, which gives everything back however it ends."""

    def __init__(self, events: AsyncIterator[dict[str, object]], generations: Generations) -> None:
        super().__init__(sse(events), headers=SSE_HEADERS, media_type="text/event-stream")
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._generations.close()


async def sse(events: AsyncIterator[dict[str, object]]) -> AsyncIterator[bytes]:
    """Write events as SSE; a failure becomes an event too, and the stream always says its end."""
    try:
        async for event in events:
            yield b"data: " + to_json(event) + b"\n\n"
    except APIError as error:
        yield b"data: " + to_json(error.body()) + b"\n\n"
    yield b"data: [DONE]\n\n"
