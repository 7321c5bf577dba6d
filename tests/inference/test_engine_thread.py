"""The engine's thread, asked by many coroutines at once."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from nanoray.config import InputError
from nanoray.inference import engine_thread
from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.engine_thread import LONGEST_PAUSE, EngineFailedError, EngineThread
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.sequence import FinishReason
from nanoray.model.generate import generate
from nanoray.model.gpt import GPT
from tests.support import tiny_gpt, tiny_tokenizer

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_gpt()


@pytest.fixture
def thread(model: GPT) -> Iterator[EngineThread]:
    engine = Engine(model, tiny_tokenizer(247), EngineConfig(max_sequences=8, block_size=4))
    thread = EngineThread(engine)
    yield thread
    thread.stop()


async def tokens_of(thread: EngineThread, prompt: list[int], params: SamplingParams) -> list[int]:
    return [o.token async for outputs in thread.generate(prompt, params) for o in outputs]


def test_many_coroutines_get_what_each_would_get_alone(thread: EngineThread, model: GPT) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(500) for _ in range(rng.randrange(1, 40))] for _ in range(20)]

    async def ask_all() -> list[list[int]]:
        return await asyncio.gather(*(tokens_of(thread, prompt, GREEDY) for prompt in prompts))

    given = asyncio.run(ask_all())

    assert given == [generate(model, prompt, 8, temperature=0) for prompt in prompts]


def test_whoever_leaves_frees_the_place(thread: EngineThread) -> None:
    async def leave_early() -> None:
        stream = thread.generate([1, 2, 3], LONG)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        cancelled = asyncio.create_task(tokens_of(thread, [1], LONG))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await thread.do(lambda _: None)  # after what was asked for before

    asyncio.run(leave_early())

    assert not thread.engine.has_work
    assert thread.engine.blocks.usage == 0


def test_a_prompt_that_is_refused_is_refused_to_its_own_caller(thread: EngineThread) -> None:
    async def ask_both() -> list[int]:
        with pytest.raises(InputError, match="prompt is empty"):
            await tokens_of(thread, [], GREEDY)
        return await tokens_of(thread, [1], GREEDY)

    assert len(asyncio.run(ask_both())) == 8


def test_work_is_done_between_two_steps(thread: EngineThread) -> None:
    async def swap() -> int:
        running = asyncio.create_task(tokens_of(thread, [1, 2], LONG))
        await asyncio.sleep(0.05)
        await thread.do(lambda engine: engine.load_weights(engine.model.state_dict()))
        with pytest.raises(ZeroDivisionError):
            await thread.do(lambda engine: engine.eos_ids.append(1 // 0))
        return len(await running)

    assert asyncio.run(swap()) == 60


def test_an_engine_that_fails_ends_every_stream_and_takes_no_more(thread: EngineThread) -> None:
    async def fail() -> list[BaseException | list[int]]:
        running = [asyncio.create_task(tokens_of(thread, [i], LONG)) for i in (1, 2)]
        await asyncio.sleep(0.02)
        await thread.do(lambda engine: setattr(engine, "runner", None))
        after = await asyncio.gather(*running, return_exceptions=True)
        with pytest.raises(EngineFailedError):
            await tokens_of(thread, [1], GREEDY)
        return after

    after = asyncio.run(fail())

    assert [type(error) for error in after] == [EngineFailedError] * 2
    assert isinstance(thread.failure, AttributeError)


async def pieces_of(thread: EngineThread, prompt: list[int]) -> list[list[int]]:
    return [[output.token for output in each] async for each in thread.generate(prompt, LONG)]


def rationed(model: GPT, observe: Callable[[float], None] = lambda _: None) -> EngineThread:
    engine = Engine(model, tiny_tokenizer(247), EngineConfig(max_sequences=8, block_size=4))
    return EngineThread(engine, observe, rate=0.01)


@pytest.fixture
def _no_longest_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "LONGEST_PAUSE", math.inf)


@pytest.mark.usefixtures("_no_longest_pause")
def test_tokens_go_together_where_handing_over_is_rationed(model: GPT) -> None:
    thread = rationed(model)

    async def ask_both() -> list[list[list[int]]]:
        return await asyncio.gather(*(pieces_of(thread, prompt) for prompt in ([1, 2], [3])))

    given = asyncio.run(ask_both())
    thread.stop()

    assert [[len(piece) for piece in pieces] for pieces in given] == [[1, 59], [1, 59]]
    alone = [generate(model, prompt, 60, temperature=0) for prompt in ([1, 2], [3])]
    assert [[*first, *rest] for first, rest in given] == alone


def test_no_token_is_held_back_for_long(model: GPT) -> None:
    thread = rationed(model, lambda _: time.sleep(0.05))

    lengths = [len(piece) for piece in asyncio.run(pieces_of(thread, [1, 2]))]
    thread.stop()

    assert lengths[0] == 1
    assert sum(lengths) == 60
    assert max(lengths) <= LONGEST_PAUSE / 0.05 + 1


@pytest.mark.usefixtures("_no_longest_pause")
def test_the_first_token_of_each_sample_does_not_wait(model: GPT) -> None:
    thread = rationed(model)
    params = SamplingParams(max_tokens=60, ignore_eos=True, num_samples=3, seed=1)

    async def samples_of() -> list[list[int]]:
        pieces = thread.generate([1, 2], params)
        return [[output.sample for output in piece] async for piece in pieces]

    pieces = asyncio.run(samples_of())
    thread.stop()

    assert pieces[0] == [0]
    first = [next(piece for piece in pieces if sample in piece) for sample in (1, 2)]
    assert all(len(piece) <= 3 for piece in first)
    assert sum(map(len, pieces)) == 180


@pytest.mark.usefixtures("_no_longest_pause")
def test_what_was_held_back_comes_before_the_failure(model: GPT) -> None:
    steps: list[float] = []

    def fail_after_ten(seconds: float) -> None:
        steps.append(seconds)
        if len(steps) == 10:
            failing.engine.runner = None  # type: ignore[assignment]

    failing = rationed(model, fail_after_ten)

    async def ask() -> list[int]:
        stream = failing.generate([1, 2], LONG)
        pieces = [await anext(stream), await anext(stream)]
        with pytest.raises(EngineFailedError):
            await anext(stream)
        return [output.token for piece in pieces for output in piece]

    tokens = asyncio.run(ask())
    failing.stop()

    assert tokens == generate(model, [1, 2], 10, temperature=0)


@pytest.mark.usefixtures("_no_longest_pause")
def test_an_answer_that_ends_by_an_error_keeps_what_is_before_it() -> None:
    model, steps = tiny_gpt(), []

    def spoil_after_ten(seconds: float) -> None:
        steps.append(seconds)
        if len(steps) == 10:
            with torch.no_grad():
                model.unembedding.weight.fill_(math.nan)

    thread = rationed(model, spoil_after_ten)

    async def reasons_of() -> list[list[FinishReason | None]]:
        pieces = thread.generate([1, 2], LONG)
        return [[output.finish_reason for output in piece] async for piece in pieces]

    pieces = asyncio.run(reasons_of())
    thread.stop()

    assert pieces == [[None], [None] * 9, [FinishReason.ERROR]]


def test_an_idle_thread_shows_that_it_lives(thread: EngineThread) -> None:
    asyncio.run(asyncio.sleep(1.5))

    assert thread.seconds_since_beat() < 1.5
