import pytest

from nanoray.model.scaling import gpt_config, num_parameters
from nanoray.model.stacks import padding_memory_bytes, stack_shapes

D34 = gpt_config(34, 65_536, head_dim=128, max_seq_len=2048)
D = 34 * 64


def test_the_stacks_hold_every_parameter_once() -> None:
    assert sum(s.count * s.item_bytes for s in stack_shapes(D34)) == 4 * num_parameters(D34)


def test_d34_on_eight_gpus_pads_both_shapes_of_the_mlp() -> None:
    # 34 matrices of either shape become 40; 136 of the attention and 65,536 rows divide by 8.
    padded = 2 * 6 * 4 * D * D * 4

    assert sum(s.padding_bytes(8) for s in stack_shapes(D34)) == padded
    # Values and gradients whole, an eighth of the sums and of Muon's one average.
    assert padding_memory_bytes(D34, 8) == pytest.approx(padded * (2 + 2 / 8))


def test_a_rank_alone_pads_nothing() -> None:
    assert padding_memory_bytes(D34, 1) == 0
