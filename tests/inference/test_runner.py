"""Chunks laid out for the model, and the logits that come back."""

import torch

from nanoray.inference.blocks import BlockTable
from nanoray.inference.runner import Runner
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.scheduler import Chunk
from nanoray.inference.sequence import Sequence
from nanoray.inference.text_stream import TextStream
from tests.support import tiny_gpt

BLOCK = 4


def make_sequence(tokens: list[int], blocks: list[int], **fields: bool) -> Sequence:
    params = SamplingParams(max_tokens=9, **fields)  # type: ignore[arg-type]
    table = BlockTable(blocks)
    return Sequence(0, 0, tokens, len(tokens), params, TextStream(), table=table)


def test_tokens_go_to_their_sequences_blocks_at_their_positions() -> None:
    runner = Runner(tiny_gpt(), 20, BLOCK)
    first = make_sequence([*range(10)], [7, 3, 5])
    second = make_sequence([*range(6)], [9, 2])
    chunks = [Chunk(first, 9, 10), Chunk(second, 2, 6)]

    layout = runner.layout(chunks)

    assert layout.positions.tolist() == [9, 2, 3, 4, 5]
    assert layout.slots.tolist() == [5 * 4 + 1, 9 * 4 + 2, 9 * 4 + 3, 2 * 4, 2 * 4 + 1]
    assert layout.tables.tolist() == [[7, 3, 5]]
    [span] = layout.spans
    assert (span.start, span.end, span.first_position) == (1, 5, 2)
    assert span.blocks.tolist() == [9, 2]


def test_shorter_tables_are_filled_with_the_block_of_nobody() -> None:
    runner = Runner(tiny_gpt(), 20, BLOCK)
    chunks = [
        Chunk(make_sequence([1], [4]), 0, 1),
        Chunk(make_sequence([*range(9)], [6, 7, 8]), 8, 9),
    ]

    layout = runner.layout(chunks)

    assert layout.tables.tolist() == [[4, 0, 0], [6, 7, 8]]


def test_logits_are_given_of_what_is_needed_only() -> None:
    runner = Runner(tiny_gpt(), 20, BLOCK)
    part = make_sequence([1, 2, 3, 4, 5], [1, 2])
    whole = make_sequence([1, 2, 3], [3])
    scored = make_sequence([1, 2, 3], [4], prompt_logprobs=True)

    given = runner.run([Chunk(part, 0, 4), Chunk(whole, 0, 3), Chunk(scored, 0, 3)], [1, 2, 3, 4])

    shapes = [None if logits is None else tuple(logits.shape) for logits in given]
    assert shapes == [None, (1, 512), (3, 512)]


def test_chunks_give_the_logits_of_a_full_forward_pass() -> None:
    model = tiny_gpt(num_kv_heads=1)
    runner = Runner(model, 20, BLOCK)
    tokens = torch.randint(0, 500, (13,), generator=torch.Generator().manual_seed(0)).tolist()
    sequence = make_sequence(tokens, [11, 4, 9, 6], prompt_logprobs=True)

    parts = []
    for start, end in ((0, 3), (3, 4), (4, 9), (9, 13)):
        [logits] = runner.run([Chunk(sequence, start, end)], [])
        assert logits is not None
        parts.append(logits)

    with torch.no_grad():
        full = model(torch.tensor([tokens]))[0]
    # fp32: the products are the same, added up in another order.
    torch.testing.assert_close(torch.cat(parts), full, rtol=1e-4, atol=1e-4)
