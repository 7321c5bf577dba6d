"""An engine of this process as the API sees it."""

import asyncio

from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.engine_thread import EngineThread
from nanoray.inference.sampling import SamplingParams
from nanoray.serve.backend import Step, engine_steps
from tests.support import tiny_gpt, tiny_tokenizer


def test_each_step_says_whose_it_is_and_how_full_the_cache_is() -> None:
    engine = Engine(tiny_gpt(), tiny_tokenizer(247), EngineConfig(max_sequences=2))
    thread = EngineThread(engine)
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)

    async def ask() -> list[Step]:
        return [step async for step in engine_steps(thread, "me", [1, 2], params)]

    steps = asyncio.run(ask())
    thread.stop()

    assert [len(step.outputs) for step in steps] == [1, 1, 1]
    assert {step.replica for step in steps} == {"me"}
    assert all(0 <= step.kv_usage <= 1 for step in steps)
