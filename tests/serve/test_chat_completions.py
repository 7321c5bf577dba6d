"""Chat answers, whole and as chunks, of scripted tokens."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from nanoray.inference.sequence import FinishReason, TokenOutput
from nanoray.inference.tools import Part
from nanoray.serve.answers import Delta
from nanoray.serve.backend import ServedModel, Step
from nanoray.serve.chat_completions import ChatAnswer, shown
from nanoray.serve.generation import Generations
from nanoray.serve.protocol import ChatRequest
from nanoray.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer([])


class Scripted:
    """Stands where generations stand, and gives steps that were written down."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps

    async def merged(self) -> AsyncIterator[tuple[int, Step]]:
        for step in self.steps:
            yield 0, step


def output(sample: int, text: str, end: FinishReason | None = None) -> TokenOutput:
    return TokenOutput(
        request=0, sample=sample, token=65, part=Part.TEXT, text=text, finish_reason=end
    )


STEPS = [
    Step([output(0, "a"), output(1, "")], "r", 0.0),
    Step([output(0, "b", FinishReason.LENGTH), output(1, "x")], "r", 0.0),
    Step([output(1, "y", FinishReason.STOP)], "r", 0.0),
]


TOGETHER = [Step([output for step in STEPS for output in step.outputs], "r", 0.0)]


def answer(**fields: Any) -> ChatAnswer:
    async def generate(prompt: list[int], params: object) -> AsyncIterator[Step]:
        yield STEPS[0]

    body = ChatRequest.model_validate({"messages": [], "n": 2, **fields})
    return ChatAnswer(body, ServedModel("m", TOKENIZER, 64, generate), [1, 2, 3])


def test_each_sample_is_a_choice_of_its_own() -> None:
    whole = asyncio.run(answer().whole(cast("Generations", Scripted(STEPS))))

    shown = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in whole["choices"]]
    assert shown == [(0, "ab", "length"), (1, "xy", "stop")]
    assert whole["usage"]["completion_tokens"] == 5
    assert "tool_events" not in whole["choices"][0]["message"]


def test_chunks_begin_each_choice_with_its_role_and_end_it_with_its_reason() -> None:
    async def collect() -> list[dict[str, Any]]:
        asked = answer(stream=True, stream_options={"include_usage": True})
        return [chunk async for chunk in asked.events(cast("Generations", Scripted(STEPS)))]

    *chunks, usage = asyncio.run(collect())

    told = [(c["choices"][0]["index"], c["choices"][0]["delta"]) for c in chunks]
    assert told == [
        (0, {"role": "assistant", "content": ""}),
        (0, {"content": "a"}),
        (1, {"role": "assistant", "content": ""}),
        (0, {"content": "b"}),
        (0, {}),
        (1, {"content": "x"}),
        (1, {"content": "y"}),
        (1, {}),
    ]
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 8


def test_tokens_that_come_together_make_one_chunk_of_each_choice() -> None:
    async def collect() -> list[dict[str, Any]]:
        asked = answer(stream=True, stream_options={"include_usage": True})
        return [chunk async for chunk in asked.events(cast("Generations", Scripted(TOGETHER)))]

    *chunks, usage = asyncio.run(collect())

    told = [(c["choices"][0]["index"], c["choices"][0]["delta"]) for c in chunks]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert told == [
        (0, {"role": "assistant", "content": ""}),
        (0, {"content": "ab"}),
        (0, {}),
        (1, {"role": "assistant", "content": ""}),
        (1, {"content": "xy"}),
        (1, {}),
    ]
    assert reasons == [None, None, "length", None, None, "stop"]
    assert usage["usage"]["completion_tokens"] == 5


def test_a_delta_of_a_tool_call_alone_has_no_text() -> None:
    assert shown(Delta(tool_events=[{"id": "1"}])) == {"tool_events": [{"id": "1"}]}
    assert shown(Delta("a")) == {"content": "a"}


def test_choices_whose_end_has_not_come_are_cut_off_once() -> None:
    async def collect() -> list[dict[str, Any]]:
        asked = answer(stream=True)
        late = [Step([output(0, "a"), output(0, "b")], "r", 0.0)]
        return [chunk async for chunk in asked.events(cast("Generations", Scripted(late)))]

    chunks = [chunk["choices"][0] for chunk in asyncio.run(collect())]

    told = [(c["index"], c["delta"].get("content"), c["finish_reason"]) for c in chunks]
    assert told == [
        (0, "", None),
        (0, "ab", None),
        (0, None, "length"),
        (1, "", None),
        (1, None, "length"),
    ]
