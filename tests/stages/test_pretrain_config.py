import dataclasses
from typing import Any

import pytest

from nanoray.config import InputError, continue_config, from_json, to_json
from nanoray.model.scaling import num_parameters
from nanoray.stages.pretrain_config import (
    PretrainConfig,
    budget,
    checkpoint_bytes,
    decide,
    model_config,
    most_checkpoints,
    optimizer_config,
    rates,
    rows_per_step,
    schedule,
    validation_rows,
)


def decided(*, on_gpu: bool = False, **fields: Any) -> PretrainConfig:
    return decide(PretrainConfig(**fields), on_gpu=on_gpu, dtype="bfloat16")


def test_nothing_given_is_a_small_run_on_cpus_and_d20_on_gpus() -> None:
    small, large = decided(), decided(on_gpu=True)

    wanted = ("run", "depth", "head_dim", "max_seq_len", "vocab_size", "total_batch_tokens")
    assert [getattr(small, name) for name in wanted] == ["d4", 4, 64, 512, 8192, 16_384]
    assert [getattr(large, name) for name in wanted] == ["d20", 20, 128, 2048, 65_536, 524_288]
    assert (small.tokens_per_param, large.tokens_per_param) == (1.0, 20.0)
    assert (small.device_batch_size, large.device_batch_size) == (8, 32)


@pytest.mark.parametrize(("depth", "batch"), [(20, 32), (26, 16), (32, 8), (34, 4)])
def test_a_gpu_gets_the_batch_that_nanochat_found_to_fit(depth: int, batch: int) -> None:
    assert decided(on_gpu=True, depth=depth).device_batch_size == batch


def test_a_decided_config_stays_as_it_is_and_survives_json() -> None:
    config = decided(depth=2, num_steps=100)

    again = decide(from_json(PretrainConfig, to_json(config)), on_gpu=True, dtype="float32")

    assert again == config


def test_validations_follow_from_the_length_and_checkpoints_from_time() -> None:
    short, long = decided(num_steps=7), decided(num_steps=100_000)

    assert (short.validate_every, long.validate_every) == (2, 250)
    assert short.save_every is long.save_every is None  # train/save_interval.py decides


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"total_batch_tokens": 1000}, "1000 is not a multiple of --max-seq-len 512. The next one"),
        ({"device_batch_size": 3}, "does not divide the 32 rows of a step"),
        ({"depth": 0}, "--depth 0 is too small. The least is 1."),
        ({"depth": 3, "head_dim": 128}, "--head-dim 128 does not divide the width 192"),
        ({"vocab_size": 200}, "--vocab-size 200 is too small. The least is 265."),
        ({"num_steps": 5, "target_flops": 1e12}, "--num-steps and --target-flops"),
        ({"num_steps": 0}, "--num-steps 0 is too small"),
        ({"tokens_per_param": -1.0}, "--tokens-per-param -1.0"),
        ({"tokens_per_param": 0.0}, "--tokens-per-param 0.0"),
        ({"target_flops": 0.0}, "--target-flops 0.0"),
        ({"tokens_per_param": 1e-9}, "less than one step"),
        ({"packing": "loose"}, "--packing loose is unknown. Choose bestfit or flat."),
        ({"dtype": "float16"}, "--dtype float16 is unknown"),
        ({"grad_clip": -1.0}, "--grad-clip -1.0"),
        ({"matrix_lr": -0.1}, "--matrix-lr -0.1"),
        ({"warmdown_ratio": 1.5}, "--warmdown-ratio 1.5"),
        ({"warmdown_ratio": 0.7, "warmup_ratio": 0.5}, "more than the whole run"),
        ({"weight_decay": float("nan")}, "--weight-decay nan"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_numbers_that_do_not_work_out_are_named_with_their_remedy(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError) as raised:
        decided(**fields)

    assert sentence in str(raised.value)


def test_a_checkpoint_holds_weights_momentum_and_two_averages() -> None:
    model = model_config(decided())
    embeddings = 2 * model.vocab_size * model.model_dim
    matrices = num_parameters(model) - embeddings

    size = checkpoint_bytes(model)

    assert size == 4 * (embeddings + matrices + 2 * embeddings + matrices)


def test_optimizer_and_schedule_get_what_the_config_says() -> None:
    config = decided(grad_clip=0.0, warmdown_ratio=0.5, newton_schulz_dtype="float32")
    model = model_config(config)

    optimizer, plan = optimizer_config(config, model), schedule(config, 100)

    assert optimizer.grad_clip is None
    assert optimizer.newton_schulz_dtype == "float32"
    assert optimizer.embedding_lr == rates(config, model).embedding == 0.2 * (256 / 768) ** -0.5
    assert (plan.num_steps, plan.warmdown_ratio) == (100, 0.5)
    assert rows_per_step(config) == 32
    assert budget(config, model).num_steps == num_parameters(model) // 16_384


def test_what_decides_the_result_is_refused_on_a_resume_and_the_rest_may_change() -> None:
    began = decided(num_steps=100)
    free = {"save_every", "keep_last", "num_workers", "device_batch_size", "log_every", "storage"}
    identity = {f.name for f in dataclasses.fields(PretrainConfig) if f.metadata.get("identity")}

    resumed = continue_config(began, PretrainConfig(save_every=3, num_workers="4"))

    assert (resumed.num_steps, resumed.save_every, resumed.num_workers) == (100, 3, "4")
    assert not identity & free
    with pytest.raises(InputError, match="--seed was 42 and is 7"):
        continue_config(began, PretrainConfig(seed=7))


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (64, 1), (640, 10), (700, 10)])
def test_validation_uses_as_many_whole_rows_as_were_asked_for(tokens: int, rows: int) -> None:
    assert validation_rows(decided(max_seq_len=64, validation_tokens=tokens)) == rows


def test_checkpoints_that_are_kept_for_good_are_counted_with_the_newest() -> None:
    newest = PretrainConfig(keep_last=3)
    more = PretrainConfig(keep_last=3, save_every=20, keep_every=50, save_at=(7, 950, 950, 1001))

    assert most_checkpoints(newest, 1000) == 4
    assert most_checkpoints(newest, 1000, waiting=5) == 9
    assert most_checkpoints(more, 1000) == 4 + 10 + 2, "every 100th is saved and kept"
    assert most_checkpoints(dataclasses.replace(more, save_every=None), 1000) == 4 + 2
