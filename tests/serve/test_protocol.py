"""Bodies of requests, and what they mean to the engine."""

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from nanoray.serve.api import Api
from nanoray.serve.errors import APIError
from nanoray.serve.protocol import ChatRequest, CompletionRequest
from nanoray.serve.settings import ApiSettings

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatRequest:
    body = ChatRequest.model_validate({"messages": MESSAGES, **fields})
    body.check()
    return body


def completion(**fields: Any) -> CompletionRequest:
    body = CompletionRequest.model_validate({"prompt": "hi", **fields})
    body.check()
    return body


def test_what_is_not_said_has_openais_defaults() -> None:
    params = chat().sampling(9)

    assert (params.temperature, params.top_p, params.top_k) == (1.0, 1.0, None)
    assert (params.num_samples, params.stop, params.max_tokens) == (1, (), 9)
    assert params.seed != chat().sampling(9).seed


def test_what_is_said_reaches_the_engine() -> None:
    body = chat(temperature=0, top_p=0.5, top_k=7, n=3, seed=-5, stop=["a", "b"], min_tokens=2)

    params = body.sampling(9, tools=True, num_logprobs=4)

    assert (params.temperature, params.top_p, params.top_k) == (0, 0.5, 7)
    assert (params.num_samples, params.seed, params.stop) == (3, -5, ("a", "b"))
    assert (params.min_tokens, params.tools, params.num_logprobs) == (2, True, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": [{}] * 1000},
        {"prompt": [[1, {}, *[{}] * 1000]]},
        {"prompt": "hi", "stop": [0] * 1000},
        {"prompt": "hi", "stop_token_ids": ["a"] * 1000},
    ],
    ids=["prompts", "ids", "stop", "stop_token_ids"],
)
def test_a_list_is_refused_at_its_first_wrong_item(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate(wrong)

    assert caught.value.error_count() <= 4  # of each shape that a prompt may have


@pytest.mark.parametrize("top_k", [-1, 0, None])
def test_top_k_has_three_ways_to_say_all(top_k: int | None) -> None:
    assert chat(top_k=top_k).sampling(1).top_k is None


@pytest.mark.parametrize(
    ("stop", "meant"), [("x", ("x",)), ("", ()), ([], ()), (None, ()), (["a", ""], ("a",))]
)
def test_stop_is_a_text_or_a_list(stop: Any, meant: tuple[str, ...]) -> None:
    assert chat(stop=stop).stop_strings() == meant


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_many(prompt: Any, prompts: list[Any]) -> None:
    assert completion(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": "a" * 300}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": [{}]}, "functions"),
        ({"tools": [{}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"min_p": 0.1}, "min_p"),
        ({"stop_token_ids": [5]}, "stop_token_ids"),
        ({"stop": list("abcde")}, "stop"),
        ({"guided_choice": ["yes", "no"]}, "guided_choice"),
        ({"function_call": {"name": "x"}}, "function_call"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
    ],
)
def test_chat_fields_that_cannot_be_served_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(APIError) as caught:
        chat(**fields).stop_strings()

    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 300}, "prompt"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    ],
)
def test_completion_fields_that_cannot_be_served_are_named(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(APIError) as caught:
        completion(**fields)

    assert (caught.value.status, caught.value.param) == (400, param)


def test_fields_that_change_nothing_are_taken() -> None:
    neutral = {"guided_choice": None, "modalities": ["text"], "function_call": "auto"}

    chat(**neutral, skip_special_tokens=True, typical_p=1.0, metadata={"a": "b"}, store=False)
    completion(bad_words=[], include_stop_str_in_output=False)


def test_a_completion_may_have_as_many_stops_as_lm_eval_gives() -> None:
    stops = tuple(f"stop {number}" for number in range(20))

    assert completion(stop=list(stops)).stop_strings() == stops


def test_more_least_tokens_than_tokens_are_refused() -> None:
    with pytest.raises(APIError, match="min_tokens 5 is more than the 4 tokens"):
        chat(min_tokens=5).sampling(4)


def test_a_client_that_leaves_while_it_sends_its_body_is_no_error_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api, path = Api({}, ApiSettings()), "/v1/completions"
    comes = iter(
        [
            {"type": "http.request", "body": b'{"prompt": "A', "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    sent: list[Any] = []

    async def receive() -> Any:
        return next(comes)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(api.app()({**scope, "client": ("127.0.0.1", 1)}, receive, send))

    assert sent[0]["status"] == 400
    assert b'status="500"' not in api.metrics.text()
    assert caplog.records == []
