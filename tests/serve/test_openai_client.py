"""The stock `openai` client, unchanged, against the server."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.chat_run import ANSWERS, CONTEXT, COUNTING, EMOJI, WEATHER
from tests.serve.server import MODEL, LocalServer

ASK_SKY = [{"role": "user", "content": "What color is the sky?"}]
ASK_COUNT = [{"role": "user", "content": "Count"}]


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Any:  # Any: its overloads want literal types
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed_and_shown(client: Any) -> None:
    models = client.models.list().data
    one = client.models.retrieve(MODEL)

    assert [model.id for model in models] == [MODEL]
    assert (one.id, one.object, one.owned_by) == (MODEL, "model", "nanoray")
    assert one.created > 1_700_000_000
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nowhere")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_chat_is_answered_with_its_usage(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK_SKY, temperature=0)

    [choice] = answer.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", WEATHER)
    assert choice.logprobs is None
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10
    assert answer.usage.completion_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("question", list(ANSWERS))
def test_a_stream_joined_is_the_whole_answer(client: Any, question: str) -> None:
    messages = [{"role": "user", "content": question}]
    whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )

    chunks = list(stream)

    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(c.delta.content or "" for c in choices) == whole.choices[0].message.content
    assert [c.delta.role for c in choices] == ["assistant"] + [None] * (len(choices) - 1)
    assert [c.finish_reason for c in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.created for chunk in chunks} == {chunks[0].created}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    counted, expected = chunks[-1].usage, whole.usage
    assert counted is not None
    assert expected is not None
    assert counted.completion_tokens == expected.completion_tokens
    assert counted.prompt_tokens == expected.prompt_tokens


def test_a_stream_without_options_has_no_usage(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=ASK_SKY, temperature=0, stream=True)
    )

    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_both_names_of_the_limit_work_and_the_newer_wins(client: Any) -> None:
    def count(**limit: int) -> tuple[int, str]:
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK_COUNT, temperature=0, **limit
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens, answer.choices[0].finish_reason

    assert count(max_tokens=5) == (5, "length")
    assert count(max_completion_tokens=6) == (6, "length")
    assert count(max_completion_tokens=7, max_tokens=5) == (7, "length")


@pytest.mark.parametrize("stop", ["three", ["zebra", " three"], "two three", "ee"])
def test_stop_strings_end_the_text_before_them(client: Any, stop: str | list[str]) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=ASK_COUNT, temperature=0, stop=stop
    )
    chunks = client.chat.completions.create(
        model=MODEL, messages=ASK_COUNT, temperature=0, stop=stop, stream=True
    )

    wanted = [stop] if isinstance(stop, str) else stop
    expected = COUNTING[: min(place for text in wanted if (place := COUNTING.find(text)) >= 0)]
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_samples_differ_and_a_seed_repeats_them(client: Any) -> None:
    def ask(**fields: object) -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK_SKY, temperature=2, max_tokens=12, n=3, **fields
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first, second, other, unseeded = ask(seed=1), ask(seed=1), ask(seed=2), ask()

    assert first == second
    assert len(set(first)) == 3
    assert other != first
    assert unseeded != first


def test_streamed_samples_are_told_apart_by_their_index(client: Any) -> None:
    fields = {"model": MODEL, "messages": ASK_SKY, "temperature": 2, "max_tokens": 12}
    whole = client.chat.completions.create(n=3, seed=1, **fields)
    texts = ["", "", ""]
    ends = []
    for chunk in client.chat.completions.create(n=3, seed=1, stream=True, **fields):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []

    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1, 2]


def test_logprobs_are_those_of_the_tokens_of_the_text(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Show me emoji"}],
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )

    known = answer.choices[0].logprobs
    assert known is not None
    assert known.content is not None
    content = b"".join(bytes(token.bytes or []) for token in known.content)
    assert content.decode() == EMOJI
    for token in known.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob  # greedy: the likeliest one
        assert [t.logprob for t in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )


def test_a_tool_call_is_told_beside_a_clean_text_and_goes_back_into_the_history(
    client: Any, server: LocalServer
) -> None:
    question = [{"role": "user", "content": "What is 12*(3+4)?"}]
    answer = client.chat.completions.create(model=MODEL, messages=question, temperature=0)
    message = answer.choices[0].message.model_dump(exclude_none=True)
    events: list[dict[str, Any]] = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=question, temperature=0, stream=True
    ):
        events += getattr(chunk.choices[0].delta, "tool_events", None) or []

    [event] = message["tool_events"]
    assert message["content"] == "Let me see. It is 84."
    assert (event["name"], event["input"], event["output"]) == ("python", "12*(3+4)", "84")
    assert event["status"] == "done"
    assert [(e["input"], e["output"]) for e in events] == [("12*(3+4)", "84")]
    history = [*question, message, {"role": "user", "content": "Thanks"}]
    tokens = server.post("/tokenize", {"messages": history}).json()["tokens"]
    text = server.post("/detokenize", {"tokens": tokens}).json()["prompt"]
    assert (
        "Let me see. <|python_start|>12*(3+4)<|python_end|><|output_start|>84<|output_end|>It is"
    ) in text


def test_completions_continue_text_and_ids_alone_and_in_batches(
    client: Any, server: LocalServer
) -> None:
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    ids = server.post("/tokenize", {"prompt": "The sky is"}).json()["tokens"]

    text = client.completions.create(prompt="The sky is", **fields)
    by_ids = client.completions.create(prompt=ids, **fields)
    batch = client.completions.create(prompt=["The sky is", "one two"], n=2, **fields)
    id_batch = client.completions.create(prompt=[ids, ids[:2]], **fields)

    assert text.object == "text_completion"
    assert text.choices[0].finish_reason == "length"
    assert text.usage is not None
    assert text.usage.completion_tokens == 8
    assert by_ids.choices[0].text == text.choices[0].text
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert batch.choices[0].text == batch.choices[1].text == text.choices[0].text
    assert id_batch.choices[0].text == text.choices[0].text


def test_completions_default_to_16_tokens(client: Any) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="one", temperature=0, extra_body={"ignore_eos": True}
    )

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_echo_gives_the_prompt_and_its_logprobs(client: Any, server: LocalServer) -> None:
    ids = server.post("/tokenize", {"prompt": "The sky is blue"}).json()["tokens"]

    answer = client.completions.create(
        model=MODEL, prompt=ids, echo=True, logprobs=2, max_tokens=0, temperature=0
    )

    choice = answer.choices[0]
    known = choice.logprobs
    assert choice.text == "The sky is blue"
    assert known is not None
    assert known.token_logprobs is not None
    assert known.top_logprobs is not None
    assert known.tokens is not None
    assert known.token_logprobs[0] is None
    assert len(known.token_logprobs) == len(known.tokens) == len(known.top_logprobs) == len(ids)
    assert known.tokens[0] == "<|bos|>"
    assert "".join(known.tokens[1:]) == "The sky is blue"
    for value, top in zip(known.token_logprobs[1:], known.top_logprobs[1:], strict=True):
        assert value in top.values()
        assert len(top) in (2, 3)


def test_streamed_completions_joined_are_the_whole(client: Any) -> None:
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 20, "prompt": ["one", "The sky"]}
    whole = client.completions.create(**fields)
    texts = ["", ""]
    for chunk in client.completions.create(stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert texts == [choice.text for choice in whole.choices]


@pytest.mark.parametrize(
    ("fields", "error", "param", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", None),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens", "invalid_value"),
        ({"max_tokens": 9999}, openai.BadRequestError, "max_tokens", "context_length_exceeded"),
        ({"top_p": 0}, openai.BadRequestError, "top_p", "invalid_value"),
        ({"n": 0}, openai.BadRequestError, "n", "invalid_value"),
        (
            {"presence_penalty": 1},
            openai.BadRequestError,
            "presence_penalty",
            "unsupported_parameter",
        ),
        (
            {"tools": [{"type": "function"}]},
            openai.BadRequestError,
            "tools",
            "unsupported_parameter",
        ),
        ({"stop": ["a"] * 5}, openai.BadRequestError, "stop", None),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", None),
        (
            {"messages": [{"role": "user", "content": "word " * 4 * CONTEXT}]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_what_cannot_be_done_raises_what_the_client_has_for_it(
    client: Any,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str,
    code: str | None,
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": ASK_SKY, **fields})

    assert caught.value.param == param
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"


def test_neutral_values_that_other_clients_send_are_taken(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ASK_SKY,
        temperature=0,
        top_p=1,
        presence_penalty=0,
        frequency_penalty=0,
        n=1,
        user="someone",
        logit_bias={},
        response_format={"type": "text"},
        extra_body={"top_k": -1, "min_tokens": 0, "unknown_field": 1},
    )

    assert answer.choices[0].message.content == WEATHER


def test_ignoring_the_end_goes_on_to_the_limit(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ASK_SKY,
        temperature=0,
        max_tokens=60,
        extra_body={"ignore_eos": True},
    )

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 60
    assert answer.choices[0].finish_reason == "length"
