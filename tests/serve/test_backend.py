"""An engine of this process as the API sees it."""

import asyncio

import pytest

from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.engine_thread import EngineThread
from nanoray.inference.sampling import SamplingParams
from nanoray.serve.backend import ServedModel, Step, engine_steps
from nanoray.text.tokenizer import Tokenizer
from tests.support import tiny_gpt, tiny_tokenizer


def test_each_step_says_whose_it_is_and_how_full_the_cache_is() -> None:
    engine = Engine(tiny_gpt(), tiny_tokenizer(247), EngineConfig(max_sequences=2))
    thread = EngineThread(engine)
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)

    async def ask() -> list[Step]:
        steps = engine_steps(thread, "me", [1, 2], params, lambda: "run/sft@3")
        return [step async for step in steps]

    steps = asyncio.run(ask())
    thread.stop()

    assert [len(step.outputs) for step in steps] == [1, 1, 1]
    assert {(step.replica, step.checkpoint) for step in steps} == {("me", "run/sft@3")}
    assert all(0 <= step.kv_usage <= 1 for step in steps)


@pytest.mark.parametrize(
    ("name", "then", "names"),
    [("demo/pretrain", "demo/sft", {"demo", "demo/pretrain"}), ("demo/sft@5", "demo/sft@5", set())],
)
def test_a_model_has_the_name_of_the_stage_that_its_weights_are_of(
    name: str, then: str, names: set[str]
) -> None:
    model = ServedModel(name, Tokenizer([]), 64, lambda prompt, params: None, 5)  # type: ignore[arg-type]
    model.names |= names & {"demo"}

    model.take_up(None)
    before = (model.id, model.step)
    model.take_up("demo/sft@7")

    assert before == (name, 5)
    assert (model.id, model.step, model.names) == (then, 7, names)
