"""The benchmark of the engine, at a size that takes seconds."""

import json
from dataclasses import replace

import pytest

from nanoray.config import InputError
from nanoray.ops.bench_engine import EngineBench, any_tokenizer, bench_engine

SMALL = EngineBench(
    depth=1,
    vocab_size=300,
    max_seq_len=64,
    prompt_tokens=8,
    answer_tokens=4,
    batch_sizes=(1, 3),
    dtype="float32",
    repeats=1,
)


def test_the_card_has_a_row_for_each_number_of_answers_at_once() -> None:
    card = json.loads(bench_engine(SMALL))

    assert list(card["measured"]) == ["engine, 1 at once", "engine, 3 at once"]
    for row in card["measured"].values():
        assert row["tokens_per_second"] > 0
        assert row["prefill_tokens_per_second"] > 0
        assert row["decode_tokens_per_second"] > 0
        assert row["mbu"] > 0
        assert row["model_gb"] >= row["cache_gb"]
    assert card["memory_gb"] > card["weights_gb"] > 0


def test_each_row_tells_the_memory_that_so_many_answers_take() -> None:
    wide = replace(
        SMALL, depth=8, head_dim=64, prompt_tokens=30, answer_tokens=8, batch_sizes=(1, 4)
    )

    rows = json.loads(bench_engine(wide))["measured"].values()

    # 38 tokens take three blocks of 16; keys and values of 8 layers of 512 numbers of 4 bytes
    assert [row["cache_gb"] for row in rows] == [
        round(n * 3 * 16 * 2 * 8 * 512 * 4 / 1e9, 4) for n in (1, 4)
    ]


def test_a_tokenizer_of_any_size_can_be_had() -> None:
    assert any_tokenizer(70_000 - 5_000).vocab_size == 65_000


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="--vocab-size 10"):
        EngineBench(vocab_size=10)
