"""Plain completions: echo, and what is known of the tokens of a prompt."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from nanoray.inference.sequence import FinishReason, TokenLogprobs, TokenOutput
from nanoray.inference.tools import Part
from nanoray.serve.backend import ServedModel, Step
from nanoray.serve.generation import Generations
from nanoray.serve.protocol import CompletionRequest
from nanoray.serve.text_completions import CompletionAnswer, CompletionChoice
from nanoray.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer([])


class Scripted:
    """Stands where generations stand."""

    def __init__(self, steps: list[tuple[int, Step]]) -> None:
        self.steps = steps

    async def merged(self) -> AsyncIterator[tuple[int, Step]]:
        for step in self.steps:
            yield step


BOS = TOKENIZER.bos_id


def known(token: int) -> TokenLogprobs:
    return TokenLogprobs(token, -float(token) / 100, ())


def choice(prompt: Any, **fields: Any) -> CompletionChoice:
    body = CompletionRequest.model_validate({"prompt": prompt, "logprobs": 1, **fields})
    return CompletionChoice(body, TOKENIZER, 0, prompt)


def last_output(prompt_ids: list[int], *, scored: bool = True) -> TokenOutput:
    prompt_logprobs = (None, *map(known, prompt_ids[1:])) if scored else ()
    return TokenOutput(
        request=0,
        sample=0,
        token=ord("z"),
        part=Part.TEXT,
        text="z",
        logprobs=known(ord("z")),
        prompt_logprobs=prompt_logprobs,
        finish_reason=FinishReason.LENGTH,
    )


def test_an_echo_of_ids_has_all_of_them_and_nothing_is_known_of_the_first() -> None:
    echoed = choice([BOS, 65, 66], echo=True)

    text = echoed.add(last_output([BOS, 65, 66]))

    logprobs = echoed.logprobs.take()
    assert text == "ABz"
    assert logprobs["tokens"] == ["<|bos|>", "A", "B", "z"]
    assert logprobs["token_logprobs"] == [None, -0.65, -0.66, -1.22]


def test_offsets_after_an_echo_are_places_in_the_whole_text() -> None:
    prompt = [BOS, *"é".encode(), 0xF0]
    echoed = choice(prompt, echo=True)

    text = echoed.add(last_output(prompt))

    assert text == "é\ufffdz"
    assert echoed.logprobs.take()["text_offset"] == [0, 0, 0, 1, 2]


def test_a_prompt_without_text_is_echoed_once() -> None:
    echoed = choice([BOS], echo=True)

    for token, said in zip("😀ab".encode(), ("", "", "", "😀", "a", "b"), strict=True):
        output = last_output([BOS])
        echoed.add(
            replace(output, token=token, text=said, logprobs=known(token), finish_reason=None)
        )

    logprobs = echoed.logprobs.take()
    assert echoed.text == "😀ab"
    assert logprobs["token_logprobs"][:2] == [None, -2.4]
    assert logprobs["text_offset"] == [0, 0, 0, 0, 0, 1, 2]


def test_offsets_of_what_a_stop_string_cut_off_are_the_end_of_the_text() -> None:
    stopped = choice("A", stop=["bc"])

    for token, said in ((97, "a"), (98, ""), (99, "")):
        reason = FinishReason.STOP if token == 99 else None
        output = last_output([BOS, 65], scored=False)
        stopped.add(
            replace(output, token=token, text=said, logprobs=known(token), finish_reason=reason)
        )

    assert stopped.text == "a"
    assert stopped.logprobs.take()["text_offset"] == [0, 1, 1]


def test_an_echo_of_text_counts_its_own_tokens_only() -> None:
    echoed = choice("AB", echo=True)

    text = echoed.add(last_output([BOS, 65, 66]))

    logprobs = echoed.logprobs.take()
    assert text == "ABz"
    assert logprobs["tokens"] == ["A", "B", "z"]
    assert logprobs["token_logprobs"] == [None, -0.66, -1.22]
    assert logprobs["text_offset"] == [0, 1, 2]


def test_without_tokens_to_make_only_the_prompt_is_told() -> None:
    echoed = choice([BOS, 65], echo=True, max_tokens=0)

    text = echoed.add(last_output([BOS, 65]))

    assert text == "A"
    assert echoed.logprobs.take()["tokens"] == ["<|bos|>", "A"]


def test_the_token_that_is_made_to_score_a_prompt_does_not_say_why_it_ended() -> None:
    echoed = choice([BOS, 65], echo=True, max_tokens=0)

    echoed.add(replace(last_output([BOS, 65]), finish_reason=FinishReason.STOP))

    assert echoed.finish_reason == "length"


def test_prompts_without_an_end_are_cut_off() -> None:
    async def collect() -> list[Any]:
        body = CompletionRequest.model_validate({"prompt": ["A", "B"]})
        model = ServedModel("m", TOKENIZER, 64, cast("Any", None))
        steps = [(0, Step([last_output([BOS, 65], scored=False)], "r", 0.0))]
        answer = CompletionAnswer(body, model, [[BOS, 65], [BOS, 66]])
        return [chunk async for chunk in answer.events(cast("Generations", Scripted(steps)))]

    chunks = asyncio.run(collect())

    told = [(c["choices"][0]["index"], c["choices"][0]["finish_reason"]) for c in chunks]
    assert told == [(0, "length"), (1, "length")]


def test_tokens_that_come_together_make_one_chunk_of_each_choice() -> None:
    texts = [(0, "a", None), (1, "x", None), (0, "b", FinishReason.LENGTH), (1, "y", None)]
    outputs = [
        replace(
            last_output([], scored=False),
            sample=sample,
            token=ord(text),
            text=text,
            logprobs=known(ord(text)),
            finish_reason=end,
        )
        for sample, text, end in texts
    ]

    async def collect() -> list[Any]:
        body = CompletionRequest.model_validate({"prompt": "A", "n": 2, "logprobs": 1})
        model = ServedModel("m", TOKENIZER, 64, cast("Any", None))
        answer = CompletionAnswer(body, model, [[BOS, 65]])
        steps = [(0, Step(outputs, "r", 0.0))]
        return [chunk async for chunk in answer.events(cast("Generations", Scripted(steps)))]

    choices = [chunk["choices"][0] for chunk in asyncio.run(collect())]

    told = [(c["index"], c["text"], c["finish_reason"]) for c in choices]
    assert told == [(0, "ab", "length"), (1, "xy", None), (1, "", "length")]
    assert [c["logprobs"]["tokens"] for c in choices] == [["a", "b"], ["x", "y"], []]


@pytest.mark.parametrize("prompt", ["AB", [65, 66]])
def test_an_echo_without_logprobs_is_text_alone(prompt: Any) -> None:
    echoed = choice(prompt, echo=True)

    assert echoed.add(last_output([], scored=False)) == "ABz"


def test_without_echo_the_prompt_is_not_told() -> None:
    assert choice("AB").add(last_output([65])) == "z"
