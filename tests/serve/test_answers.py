"""Choices that grow by tokens."""

import random

import pytest

from nanoray.inference.sequence import FinishReason, TokenLogprobs, TokenOutput
from nanoray.inference.text_stream import TextStream
from nanoray.inference.tools import Part
from nanoray.serve.answers import (
    ChatChoice,
    CompletionLogprobs,
    TextPlaces,
    Usage,
    chat_logprobs,
)
from nanoray.serve.errors import APIError
from nanoray.serve.tool_events import ToolEvents
from nanoray.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer([])


def output(token: int, **fields) -> TokenOutput:
    return TokenOutput(**{"request": 0, "sample": 0, "token": token, "part": Part.TEXT, **fields})


def test_a_choice_is_the_sum_of_its_deltas() -> None:
    choice = ChatChoice(0, TOKENIZER, ToolEvents(TOKENIZER, "a"))

    deltas = [
        choice.add(output(65, text="A")),
        choice.add(output(66, text="B")),
        choice.add(output(260, part=Part.MARKER, finish_reason=FinishReason.STOP)),
    ]

    assert [delta.content for delta in deltas] == ["A", "B", ""]
    assert (choice.content, choice.finish_reason) == ("AB", "stop")
    assert deltas[-1].finish_reason == "stop"


def test_a_model_that_failed_is_an_error_of_the_server() -> None:
    choice = ChatChoice(0, TOKENIZER, ToolEvents(TOKENIZER, "a"))

    with pytest.raises(APIError, match="no finite numbers") as caught:
        choice.add(output(65, finish_reason=FinishReason.ERROR))

    assert caught.value.status == 500


def test_the_prompt_that_samples_share_is_counted_once() -> None:
    usage = Usage(34)

    for sample in range(4):
        usage.count(output(65, sample=sample, cached_tokens=32 if sample else 16))

    assert usage.to_json()["prompt_tokens_details"] == {"cached_tokens": 16}


def test_a_call_begins_behind_the_text_that_was_held_back_until_then() -> None:
    choice = ChatChoice(0, TOKENIZER, ToolEvents(TOKENIZER, "a"))
    start = TOKENIZER.special_ids["<|python_start|>"]

    choice.add(output(65, text="A"))
    choice.add(output(start, part=Part.MARKER, text="!"))
    delta = choice.cut_off()

    assert (choice.content, choice.finish_reason) == ("A!", "length")
    assert [(e["offset"], e["status"]) for e in delta.tool_events] == [(2, "unfinished")]


def test_usage_counts_tokens_and_those_from_the_cache() -> None:
    usage = Usage(10)

    usage.count(output(65, cached_tokens=8))
    usage.count(output(66))

    assert usage.to_json() == {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 8},
    }


def test_logprobs_of_a_chat_have_bytes_that_are_no_text() -> None:
    known = chat_logprobs(TokenLogprobs(0xFF, -1.0, ((65, -0.5), (256, -2.0))), TOKENIZER)

    assert known["token"] == "\N{REPLACEMENT CHARACTER}"
    assert known["bytes"] == [0xFF]
    assert [top["token"] for top in known["top_logprobs"]] == ["A", "<|bos|>"]


def test_logprobs_of_a_completion_are_four_lists_of_one_length() -> None:
    known = CompletionLogprobs(TOKENIZER)

    known.add(65, None)
    known.add(66, TokenLogprobs(66, -1.5, ((67, -0.5),)))
    taken = known.take()

    assert taken == {
        "tokens": ["A", "B"],
        "token_logprobs": [None, -1.5],
        "top_logprobs": [None, {"C": -0.5, "B": -1.5}],
        "text_offset": [0, 1],
    }
    assert known.take()["tokens"] == []


@pytest.mark.parametrize(
    ("tokens", "text", "offsets"),
    [
        ([*"a🙂b".encode()], "a🙂b", [0, 1, 1, 1, 1, 2]),
        ([65, TOKENIZER.bos_id, 66], "AB", [0, 1, 1]),
        ([0xF0, 0x9F, 65], "\ufffdA", [0, 0, 1]),
        ([0xF0, 0x9F, TOKENIZER.bos_id, 65], "\ufffdA", [0, 0, 1, 1]),
        ([0xF0, 0x41, 0xE6, 0xBC, 0xA2, 0xFF, 66], "\ufffdA漢\ufffdB", [0, 1, 2, 2, 2, 3, 4]),
        ([*"\ufffdx".encode()], "\ufffdx", [0, 0, 0, 1]),
    ],
)
def test_offsets_are_places_in_the_text(tokens: list[int], text: str, offsets: list[int]) -> None:
    known = CompletionLogprobs(TOKENIZER)
    shown = TextStream()

    for token in tokens:
        known.add(token, None)
    given = [
        shown.add(bytes([token])) if token < TOKENIZER.bos_id else shown.finish()
        for token in tokens
    ]

    assert "".join(given) + shown.finish() == text
    assert known.take()["text_offset"] == offsets


def test_places_follow_any_bytes_as_the_text_does() -> None:
    draw = random.Random(0)
    alphabet = [65, 0x80, 0x9F, 0x99, 0x82, 0xF0, 0xE6, 0xBC, 0xA2, 0xC3, 0xEF, 0xBF, 0xBD, 0xFF]
    for _ in range(5_000):
        content = bytes(draw.choices(alphabet, k=8))
        places = TextPlaces()

        starts = [places.add(bytes([byte])) for byte in content]

        assert places.end() == len(content.decode(errors="replace"))
        for at, start in enumerate(starts):  # from where a character begins, the rest is the rest
            if at == 0 or start != starts[at - 1]:
                rest = content[at:].decode(errors="replace")
                assert content.decode(errors="replace")[start:] == rest


def test_of_two_tokens_with_one_text_the_likelier_keeps_it() -> None:
    known = CompletionLogprobs(TOKENIZER)

    known.add(0xFE, TokenLogprobs(0xFE, -3.0, ((0xFF, -0.5), (0xFD, -1.0))))

    assert known.top_logprobs == [{"\N{REPLACEMENT CHARACTER}": -0.5}]
