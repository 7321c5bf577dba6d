"""Rows of conversations: whole, padded, and with the tokens marked that are not learned."""

import itertools
import json
import random
from typing import Any

import numpy as np
import pytest
import torch

from nanoray.data.batches import batch_of
from nanoray.data.conversations import (
    CONVERSATIONS,
    CUT,
    LEARNED,
    PADDING,
    UNLEARNABLE,
    pack_conversations,
    pack_whole,
)
from nanoray.text.chat import IGNORE_INDEX, render
from tests.support import tiny_tokenizer
from tests.text.test_chat import BYTES, GOLDEN, GOLDEN_IDS, GOLDEN_MASK


def chat(question: str, *answers: str) -> str:
    turns = [{"role": "user", "content": question}]
    for answer in answers:
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": "go on"}]
    return json.dumps(turns[:-1] if answers else turns)


def random_chats(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        chat("q" * rng.randrange(1, 40), *("a" * rng.randrange(1, 30) for _ in range(2)))
        for _ in range(count)
    ]


def pieces_of(row: np.ndarray[Any, Any], bos: int) -> list[list[int]]:
    """Cut a row at its <|bos|>s; those that stand alone are padding."""
    ids = np.where(row < 0, ~row, row).tolist()
    starts = [i for i, token in enumerate(ids) if token == bos] + [len(ids)]
    pieces = [ids[a:b] for a, b in itertools.pairwise(starts)]
    return [piece for piece in pieces if len(piece) > 1]


def test_a_row_holds_the_golden_render_and_its_mask() -> None:
    unit = pack_conversations([json.dumps(GOLDEN)], BYTES, row_len=21, learn="assistant")

    batch = batch_of(torch.from_numpy(unit.rows), text_start=BYTES.bos_id)
    targets = [i if m else IGNORE_INDEX for i, m in zip(GOLDEN_IDS, GOLDEN_MASK, strict=True)]
    assert batch.inputs.tolist() == [[*GOLDEN_IDS, BYTES.bos_id]]
    assert batch.targets.tolist() == [[*targets[1:], IGNORE_INDEX, IGNORE_INDEX]]


def test_learning_all_leaves_out_the_first_token_and_the_padding_alone() -> None:
    unit = pack_conversations([json.dumps(GOLDEN)], BYTES, row_len=21, learn="all")

    batch = batch_of(torch.from_numpy(unit.rows), text_start=None)
    assert batch.targets.tolist() == [[*GOLDEN_IDS[1:], IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.texts is None


def test_every_conversation_is_whole_in_one_row() -> None:
    chats = random_chats(200)

    unit = pack_conversations(chats, BYTES, row_len=257, learn="assistant")

    found = [tuple(piece) for row in unit.rows for piece in pieces_of(row, BYTES.bos_id)]
    wanted = [tuple(render(json.loads(one), BYTES)[0]) for one in chats]
    assert sorted(found) == sorted(wanted)
    assert unit.num_tokens == sum(map(len, wanted))
    assert unit.counts[PADDING] == unit.rows.size - unit.num_tokens
    assert unit.counts[PADDING] < 0.05 * unit.rows.size
    assert unit.counts[LEARNED] == sum(sum(render(json.loads(one), BYTES)[1]) for one in chats)


def test_texts_of_a_row_are_told_apart() -> None:
    unit = pack_conversations([chat("a", "b"), chat("c", "d")], BYTES, row_len=16, learn="all")

    batch = batch_of(torch.from_numpy(unit.rows), text_start=BYTES.bos_id)
    assert batch.texts is not None
    assert batch.texts.tolist() == [[1] * 7 + [2] * 7 + [3]]


@pytest.mark.parametrize("learn", ["assistant", "all"])
def test_a_conversation_longer_than_a_row_is_cut_at_its_end_and_counted(learn: str) -> None:
    long = chat("q", "a" * 100)

    unit = pack_conversations([long], BYTES, row_len=20, learn=learn)

    ids, _ = render(json.loads(long), BYTES)
    assert pieces_of(unit.rows[0], BYTES.bos_id) == [ids[:20]]
    assert unit.counts[CUT] == 1


def test_what_has_nothing_to_learn_is_left_out_and_counted() -> None:
    question_alone, answer_beyond = chat("what"), chat("q" * 50, "answer")

    unit = pack_conversations(
        [question_alone, answer_beyond, chat("q", "a")], BYTES, row_len=20, learn="assistant"
    )

    assert len(unit.rows) == 1
    assert unit.counts[UNLEARNABLE] == 2
    assert unit.counts[CONVERSATIONS] == 3
    assert ((unit.rows >= 0).any(1)).all()


def test_a_unit_in_which_nothing_can_be_learned_has_no_rows() -> None:
    unit = pack_conversations([chat("what")] * 3, BYTES, row_len=20, learn="assistant")

    assert unit.rows.shape == (0, 20)
    assert unit.counts[PADDING] == 0


def test_rows_of_one_token_conversations_are_never_without_a_target() -> None:
    # Row length 2: <|bos|> and one more; only "all" has anything to learn in it.
    unit = pack_conversations(random_chats(5), BYTES, row_len=2, learn="all")

    assert (unit.rows[:, 1] >= 0).all()
    assert unit.counts[CUT] == 5


def test_packing_depends_on_the_documents_alone() -> None:
    tokenizer, chats = tiny_tokenizer(), random_chats(50)

    first, second = (
        pack_conversations(chats, tokenizer, row_len=65, learn="assistant") for _ in range(2)
    )

    assert np.array_equal(first.rows, second.rows)


def test_each_row_takes_the_longest_piece_that_fits() -> None:
    pieces = [np.full(n, n, np.int32) for n in (6, 5, 4, 3, 1)]

    rows = pack_whole(pieces, 10, np.int32(-1))

    assert sorted(sorted(set(row.tolist()) - {-1}) for row in rows) == [[1, 3, 5], [4, 6]]
