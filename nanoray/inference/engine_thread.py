"""An engine in a thread of its own, for callers in an event loop.

The thread steps the engine as long as it has work. Callers hand it their wishes, which it fulfils
between two steps; what a step brings goes to the event loop of whoever asked. Each time that
something is handed over costs the callers, and where they share the engine's processors the engine
as well, so it can be rationed: when many streams are open, some tokens of each go together.
"""

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable

from nanoray.inference.engine import Engine
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.sequence import FinishReason, TokenOutput

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 0.2
"""Seconds for which a token is held back at most, however many streams there are."""
IDLE_SECONDS = 1.0
"""How often an idle thread shows that it lives."""


class EngineFailedError(RuntimeError):
    """The engine's thread has ended by an error, and nothing that it held can be continued."""


class Stream:
    """Where the outputs of one request go."""

    def __init__(self, num_samples: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[list[TokenOutput] | Exception] = asyncio.Queue()
        self.num_open = num_samples
        self.request: int | None = None
        self._held: list[TokenOutput] = []
        self._begun: set[int] = set()
        self._is_urgent, self._handed_over = False, -math.inf

    def hold(self, output: TokenOutput) -> None:
        """Keep an output for the next time that something is handed over."""
        if output.finish_reason is FinishReason.ERROR:
            self.hand_over(time.monotonic(), 0.0)  # it ends the answer, and not what is before it
        self._held.append(output)
        self._is_urgent |= output.finish_reason is not None or output.sample not in self._begun
        self._begun.add(output.sample)

    def hand_over(self, now: float, pause: float) -> None:
        """Hand over what is held, unless the last time is less than `pause` seconds ago.

        The first token of a sample does not wait, nor does its end.
        """
        if self._held and (self._is_urgent or now - self._handed_over >= pause):
            self.put(self._held)
            self._held, self._is_urgent, self._handed_over = [], False, now

    def put(self, item: "list[TokenOutput] | Exception") -> None:
        """Hand something over, from the engine's thread."""
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.warning("request %s: its event loop is closed", self.request)


class EngineThread:
    """Runs an engine; `generate` may be called by any number of coroutines."""

    def __init__(
        self,
        engine: Engine,
        observe: Callable[[float], None] = lambda _: None,
        rate: float = math.inf,
    ) -> None:
        """Start the thread.

        Args:
            engine: used by no one else from here on.
            observe: called after each step, in the thread, with the step's seconds.
            rate: how often per second something is handed over, to all requests together; the
                first token of an answer and its end come besides.
        """
        self.engine, self._observe, self._rate = engine, observe, rate
        self._wishes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[int, Stream] = {}
        self._stopping = False
        self.failure: BaseException | None = None
        self.last_beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def generate(
        self, prompt: list[int], params: SamplingParams
    ) -> AsyncIterator[list[TokenOutput]]:
        """Continue a prompt; yields what each step brings, and frees the place when closed.

        Raises:
            InputError: the prompt cannot be continued.
            EngineFailedError: the engine has failed, before or meanwhile.
        """
        stream = Stream(params.num_samples)
        self._wish(lambda: self._begin(stream, prompt, params))
        try:
            while stream.num_open:
                item = await stream.queue.get()
                if isinstance(item, Exception):
                    raise item
                stream.num_open -= sum(output.finish_reason is not None for output in item)
                yield item
        finally:
            if stream.num_open:
                self._wish(lambda: self._abort(stream))

    async def do(self, work: Callable[[Engine], object]) -> None:
        """Do something with the engine between two steps, and wait until it is done."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def wish() -> None:
            error: Exception | None = None
            try:
                work(self.engine)
            except Exception as caught:  # it belongs to whoever asked for it
                error = caught
            loop.call_soon_threadsafe(settle, done, error)

        self._wish(wish)
        await done

    def seconds_since_beat(self) -> float:
        """Give how long the thread has shown no life; a healthy one does after every step."""
        return time.monotonic() - self.last_beat

    def stop(self) -> None:
        """End the thread; open streams end with an error."""
        self._stopping = True
        self._wish(lambda: None)
        self._thread.join()

    def _wish(self, wish: Callable[[], None]) -> None:
        """Let the thread do something between two steps."""
        self._wishes.put(wish)
        if not self._thread.is_alive():
            self._fulfil_all()  # nobody else would: it fails each stream

    def _begin(self, stream: Stream, prompt: list[int], params: SamplingParams) -> None:
        if self.failure is not None or self._stopping:
            stream.put(EngineFailedError("the engine has stopped"))
            return
        try:
            stream.request = self.engine.add(prompt, params)
        except Exception as error:  # of this request, whatever it is
            stream.put(error)
            return
        self._streams[stream.request] = stream

    def _abort(self, stream: Stream) -> None:
        if stream.request is not None:
            self.engine.abort(stream.request)
            self._streams.pop(stream.request, None)

    def _run(self) -> None:
        """Step until stopped, or until something fails."""
        try:
            while not self._stopping:
                self._fulfil_all(wait=not self.engine.has_work)
                if self.engine.has_work:
                    began = time.perf_counter()
                    outputs = self.engine.step()
                    self._hand_over(outputs)
                    self._observe(time.perf_counter() - began)
                self.last_beat = time.monotonic()
        except BaseException as error:
            self.failure = error
            logger.exception("the engine failed")
        self._stopping = True
        for stream in self._streams.values():
            stream.hand_over(time.monotonic(), pause=0.0)
            stream.put(EngineFailedError("the engine has stopped"))
        self._streams.clear()
        self._fulfil_all()

    def _fulfil_all(self, *, wait: bool = False) -> None:
        """Do what was asked for; waits a moment for the first wish if told to."""
        try:
            self._wishes.get(block=wait, timeout=IDLE_SECONDS)()
            while True:
                self._wishes.get_nowait()()
        except queue.Empty:
            pass

    def _hand_over(self, outputs: list[TokenOutput]) -> None:
        """Give the outputs of steps to whoever asked for them."""
        requests = {output.request for output in outputs}
        for output in outputs:
            self._streams[output.request].hold(output)
        now, pause = time.monotonic(), min(len(requests) / self._rate, LONGEST_PAUSE)
        for stream in self._streams.values():
            stream.hand_over(now, pause)
        for request in requests:
            if not self.engine.is_open(request):
                del self._streams[request]


def settle(done: "asyncio.Future[None]", error: Exception | None) -> None:
    """Finish a future that nobody may wait for any more."""
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
