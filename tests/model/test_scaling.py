from typing import Any

import pytest
import torch

from nanoray.config import InputError
from nanoray.model.gpt import GPT, GPTConfig
from nanoray.model.scaling import (
    flops_per_token,
    gpt_config,
    gpu_peak_flops,
    learning_rates,
    num_parameters,
    training_budget,
)
from tests.support import tiny_config

BATCH = 524_288

TABLE = [
    # depth, D, heads, parameters, FLOPs per token, ratio, steps, tokens, FLOPs
    (4, 256, 2, 36_700_160, 1.447035e8, 20, 1_400, 734_003_200, 1.062e17),
    (12, 768, 6, 185_597_952, 1.038090e9, 20, 7_080, 3_711_959_040, 3.853e18),
    (20, 1280, 10, 560_988_160, 3.491758e9, 20, 21_400, 11_219_763_200, 3.918e19),
    (26, 1664, 13, 1_081_999_360, 6.900941e9, 20, 41_275, 21_639_987_200, 1.493e20),
    (32, 2048, 16, 1_879_048_192, 1.207960e10, 20, 71_680, 37_580_963_840, 4.540e20),
    (34, 2176, 17, 2_217_082_880, 1.426509e10, 20, 84_575, 44_341_657_600, 6.325e20),
    (34, 2176, 17, 2_217_082_880, 1.426509e10, 40, 169_150, 88_683_315_200, 1.265075e21),
]
"""nanochat.md 1.9; the last row is the published run."""


def config_of(depth: int) -> GPTConfig:
    return gpt_config(depth, 65_536, head_dim=128, max_seq_len=2048)


@pytest.mark.parametrize(
    ("depth", "D", "heads", "parameters", "flops", "ratio", "steps", "tokens", "total"), TABLE
)
def test_one_dial_gives_the_numbers_of_nanochat(
    depth: int,
    D: int,
    heads: int,
    parameters: int,
    flops: float,
    ratio: float,
    steps: int,
    tokens: int,
    total: float,
) -> None:
    config = config_of(depth)

    budget = training_budget(config, BATCH, tokens_per_param=ratio)

    assert (config.model_dim, config.num_heads, config.num_kv_heads) == (D, heads, heads)
    assert num_parameters(config) == parameters
    assert (budget.num_steps, budget.tokens) == (steps, tokens)
    # As many digits as the table has.
    assert flops_per_token(config) == pytest.approx(flops, rel=5e-7)
    assert budget.flops == pytest.approx(total, rel=5e-4)
    assert budget.tokens_per_param == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_layers": 3, "mlp_ratio": 2},
        {"num_heads": 4, "num_kv_heads": 1, "head_dim": 32},
        {"vocab_size": 1000, "embedding_dtype": "bfloat16"},
    ],
)
def test_the_formula_counts_the_weights_that_a_model_has(fields: dict[str, Any]) -> None:
    config = tiny_config(**fields)

    counted = num_parameters(config)

    with torch.device("meta"):
        model = GPT(config)
    assert counted == sum(parameter.numel() for parameter in model.parameters())


def test_layers_with_a_window_attend_to_fewer_tokens() -> None:
    everywhere = gpt_config(4, 512, head_dim=64, max_seq_len=2048)
    fields = {**everywhere.to_json(), "window_pattern": "SSL"}

    windowed = GPTConfig(**fields)

    # Layers 0 and 1 see 512 tokens instead of 2048; layer 3, as the last, sees all.
    saved = 2 * 12 * 256 * (2048 - 512)
    assert flops_per_token(everywhere) - flops_per_token(windowed) == saved


def test_a_window_wider_than_the_row_saves_nothing() -> None:
    wide = tiny_config(window_pattern="SL", max_seq_len=64)

    flops = flops_per_token(wide)

    assert wide.window(0) == 128
    assert flops == flops_per_token(tiny_config(max_seq_len=64))


def test_a_horizon_in_steps_is_taken_as_it_is() -> None:
    budget = training_budget(config_of(4), 1000, num_steps=7)

    assert (budget.num_steps, budget.tokens) == (7, 7000)
    assert budget.flops == 7000 * flops_per_token(config_of(4))


def test_a_horizon_in_operations_is_rounded_to_the_nearest_step() -> None:
    config = config_of(20)
    per_step = flops_per_token(config) * BATCH

    steps = [
        training_budget(config, BATCH, target_flops=count * per_step).num_steps
        for count in (10.4, 10.6)
    ]

    assert steps == [10, 11]


def test_a_horizon_in_tokens_per_parameter_is_rounded_down() -> None:
    config = config_of(4)

    budget = training_budget(config, BATCH, tokens_per_param=20.01)

    assert budget.num_steps == 1400


@pytest.mark.parametrize(
    ("horizons", "said"),
    [
        ({}, "Give one of --num-steps, --target-flops, --tokens-per-param, not none."),
        ({"num_steps": 5, "target_flops": 1e18}, "not --num-steps 5 and --target-flops 1e+18."),
        ({"num_steps": 0}, "--num-steps 0 is less than one step of 524288 tokens. Give more."),
        ({"target_flops": 1e9}, "--target-flops 1000000000.0 is less than one step"),
        ({"tokens_per_param": 0.001}, "--tokens-per-param 0.001 is less than one step"),
        ({"tokens_per_param": float("inf")}, "--tokens-per-param inf is not a finite number"),
        ({"tokens_per_param": 1e300}, "--tokens-per-param 1e+300 is more than 1e+18 tokens. Give"),
        ({"tokens_per_param": 1e308}, "--tokens-per-param 1e+308 is more than"),
        ({"target_flops": 1e300}, "--target-flops 1e+300 is more than"),
        ({"num_steps": 10**400}, "0 is more than"),
        ({"target_flops": float("nan")}, "--target-flops nan is not a finite number"),
    ],
)
def test_a_horizon_that_does_not_work_out_names_its_flag(
    horizons: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        training_budget(config_of(4), BATCH, **horizons)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("depth", "head_dim", "said"),
    [
        (11, 128, "--head-dim 128 does not divide the width 704 of --depth 11. Give --head-dim 32"),
        (1, 128, "--head-dim 128 does not divide the width 64 of --depth 1. Give --head-dim 32"),
        (4, 100, "Give --head-dim 32 or 64 or 128 or 256, or another depth."),
        (4, 0, "--head-dim 0 does not divide"),
        (0, 128, "--depth 0 has no layers. The least is 1."),
        (10**11, 128, "--depth 100000000000 is more than any model has. The most is 10000."),
        (-3, 128, "--depth -3 has no layers. The least is 1."),
    ],
)
def test_a_shape_that_does_not_work_out_names_the_values_that_would(
    depth: int, head_dim: int, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        gpt_config(depth, 512, head_dim=head_dim, max_seq_len=64)

    assert said in str(caught.value)


@pytest.mark.parametrize("depth", range(1, 41))
def test_every_head_dim_that_an_error_names_works(depth: int) -> None:
    with pytest.raises(InputError) as caught:
        gpt_config(
            depth, 512, head_dim=48 if depth % 3 else 80 if depth % 5 else 112, max_seq_len=8
        )
    named = str(caught.value).split("Give --head-dim ")[1].split(",")[0].split(" or ")

    configs = [gpt_config(depth, 512, head_dim=int(value), max_seq_len=8) for value in named]

    assert [config.model_dim for config in configs] == [64 * depth] * len(named)


def test_rates_of_embedding_and_unembedding_shrink_with_the_root_of_the_width() -> None:
    d34 = learning_rates(config_of(34), matrix=0.02, embedding=0.2, unembedding=0.004)
    d12 = learning_rates(config_of(12), matrix=0.02, embedding=0.2, unembedding=0.004)

    # nanochat.md 2.1 has seven digits.
    assert d34.unembedding == pytest.approx(0.00237635, rel=3e-6)
    assert d34.embedding == pytest.approx(0.1188177, rel=1e-6)
    assert (d12.embedding, d12.unembedding) == (0.2, 0.004)
    assert d34.matrix == d12.matrix == 0.02


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 836e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_gpu_is_known_by_the_name_its_driver_gives(name: str, peak: float | None) -> None:
    assert gpu_peak_flops(name) == peak
