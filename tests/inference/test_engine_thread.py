"""The engine's thread, asked by many coroutines at once."""

import asyncio
import random
from collections.abc import Iterator

import pytest

from nanoray.config import InputError
from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.engine_thread import EngineFailedError, EngineThread
from nanoray.inference.sampling import SamplingParams
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


def test_tokens_go_together_where_there_is_a_most_per_second(model: GPT) -> None:
    engine = Engine(model, tiny_tokenizer(247), EngineConfig(max_sequences=8, block_size=4))
    thread = EngineThread(engine, most_per_second=0.01)

    async def ask_both() -> list[list[list[int]]]:
        return await asyncio.gather(*(pieces_of(thread, prompt) for prompt in ([1, 2], [3])))

    given = asyncio.run(ask_both())
    thread.stop()

    assert [[len(piece) for piece in pieces] for pieces in given] == [[1, 59], [1, 59]]
    alone = [generate(model, prompt, 60, temperature=0) for prompt in ([1, 2], [3])]
    assert [[*first, *rest] for first, rest in given] == alone


def test_what_was_held_back_comes_before_the_failure(model: GPT) -> None:
    engine = Engine(model, tiny_tokenizer(247), EngineConfig(max_sequences=8, block_size=4))
    steps: list[float] = []

    def fail_after_ten(seconds: float) -> None:
        steps.append(seconds)
        if len(steps) == 10:
            engine.runner = None  # type: ignore[assignment]

    thread = EngineThread(engine, fail_after_ten, most_per_second=0.01)

    async def ask() -> list[int]:
        stream = thread.generate([1, 2], LONG)
        pieces = [await anext(stream), await anext(stream)]
        with pytest.raises(EngineFailedError):
            await anext(stream)
        return [output.token for piece in pieces for output in piece]

    tokens = asyncio.run(ask())
    thread.stop()

    assert tokens == generate(model, [1, 2], 10, temperature=0)


def test_an_idle_thread_shows_that_it_lives(thread: EngineThread) -> None:
    asyncio.run(asyncio.sleep(1.5))

    assert thread.seconds_since_beat() < 1.5
