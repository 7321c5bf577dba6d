"""How many blocks an engine gets."""

import pytest
import torch

from nanoray.config import InputError
from nanoray.inference.cache_size import blocks_that_fit, free_bytes
from tests.support import tiny_gpt

BLOCK_BYTES = 16 * 2 * 2 * 2 * 64 * 4
"""16 tokens; keys and values of 2 layers with 2 heads of 64 in fp32."""


def test_full_sequences_get_all_their_blocks_where_there_is_room() -> None:
    assert blocks_that_fit(tiny_gpt(), 8) == 1 + 8 * 64 // 16


def test_longer_sequences_get_more_blocks() -> None:
    assert blocks_that_fit(tiny_gpt(), 8, context_tokens=65) == 1 + 8 * 5


def test_less_memory_gives_fewer_blocks() -> None:
    assert blocks_that_fit(tiny_gpt(), 8, 20.5 * BLOCK_BYTES / 1e9) == 20


def test_a_cache_that_holds_no_sequence_is_refused_with_what_it_takes() -> None:
    with pytest.raises(InputError, match=r"holds 64 tokens, and one sequence has 64.*--cache-gb"):
        blocks_that_fit(tiny_gpt(), 8, 4.5 * BLOCK_BYTES / 1e9)


def test_some_memory_is_free() -> None:
    assert free_bytes(torch.device("cpu")) > 1e6
