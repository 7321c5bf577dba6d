import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nanoray.data.packing import Tokens
from nanoray.model.gpt import GPT
from nanoray.train.validation import BitsPerByte
from nanoray.train.world import LocalWorld, World
from tests.support import tiny_tokenizer
from tests.train.ranks import GroupWorld
from tests.train.tiny_run import tiny_model, tiny_plan

LENGTHS = tiny_tokenizer().token_lengths

# The losses of single tokens are fp32 (6e-8), and other batches add up in another order.
ROUNDING = 1e-6


@pytest.fixture
def rows(tmp_path: Path) -> Tokens:
    found = tiny_plan(tmp_path).validation_rows(7)
    assert len(found) == 7
    return found


@torch.no_grad()
def bits_per_byte_token_by_token(model: GPT, rows: Tokens, lengths: npt.NDArray[np.int32]) -> float:
    nats, num_bytes = 0.0, 0
    for row in rows:
        logits = model(torch.from_numpy(row[:-1]).long()[None])[0].double()
        for place, target in enumerate(row[1:].tolist()):
            if lengths[target]:
                logprob = logits[place, target] - logits[place].exp().sum().log()
                nats -= logprob.item()
                num_bytes += int(lengths[target])
    return nats / math.log(2) / num_bytes


def bits_per_byte_on_rank(world: World, rows: Tokens, device_batch_size: int) -> float:
    return BitsPerByte(rows, LENGTHS, world, device_batch_size).bits_per_byte(tiny_model())


def test_bits_per_byte_is_the_sum_over_tokens_in_float64(rows):
    model = tiny_model()

    result = BitsPerByte(rows, LENGTHS, LocalWorld(), 4).bits_per_byte(model)

    expected = bits_per_byte_token_by_token(model, rows, LENGTHS)
    assert result == pytest.approx(expected, rel=ROUNDING)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_for_each_token(rows):
    model = tiny_model()
    model.unembedding.weight.data.zero_()

    result = BitsPerByte(rows, LENGTHS, LocalWorld(), 4).bits_per_byte(model)

    lengths = LENGTHS[rows[:, 1:]]
    expected = math.log2(model.config.vocab_size) * (lengths > 0).sum() / lengths.sum()
    assert result == pytest.approx(expected, rel=ROUNDING)


def test_special_tokens_count_neither_in_nats_nor_in_bytes(rows):
    model, bos = tiny_model(), tiny_tokenizer().bos_id
    assert (rows[:, 1:] == bos).any(), "no special token is a target"

    result = BitsPerByte(rows, LENGTHS, LocalWorld(), 4).bits_per_byte(model)

    with_bos = LENGTHS.copy()
    with_bos[bos] = 5
    counted = BitsPerByte(rows, with_bos, LocalWorld(), 4).bits_per_byte(model)
    assert counted == pytest.approx(
        bits_per_byte_token_by_token(model, rows, with_bos), rel=ROUNDING
    )
    assert abs(counted - result) > 100 * ROUNDING


def test_rows_of_special_tokens_alone_have_no_finite_measure():
    rows = np.full((3, 25), tiny_tokenizer().bos_id, np.int32)

    result = BitsPerByte(rows, LENGTHS, LocalWorld(), 4).bits_per_byte(tiny_model())

    assert result == math.inf


@pytest.mark.parametrize("device_batch_size", [1, 2, 3, 7, 16])
def test_bits_per_byte_do_not_depend_on_the_batch(rows, device_batch_size):
    expected = bits_per_byte_on_rank(LocalWorld(), rows, 4)

    result = bits_per_byte_on_rank(LocalWorld(), rows, device_batch_size)

    assert result == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("num_rows", [1, 2, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_bits_per_byte_do_not_depend_on_the_ranks_even_if_some_have_no_row(
    ranks, rows, world_size, num_rows
):
    expected = bits_per_byte_on_rank(LocalWorld(), rows[:num_rows], 2)

    results = ranks.run(bits_per_byte_on_rank, world_size, rows[:num_rows], 2)

    assert len(set(results)) == 1
    assert results[0] == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_row_is_computed_by_one_rank(rows, world_size):
    worlds = [GroupWorld(rank, world_size) for rank in range(world_size)]

    shares = [torch.cat(BitsPerByte(rows, LENGTHS, world, 4).rows) for world in worlds]

    computed = torch.cat([share[(share >= 0).all(1)] for share in shares])  # without padding
    assert sorted(computed.tolist()) == sorted(rows.tolist())


def test_validating_changes_nothing(rows):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    validation = BitsPerByte(rows, LENGTHS, LocalWorld(), 4)

    first, second = validation.bits_per_byte(model), validation.bits_per_byte(model)

    assert first == second
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
