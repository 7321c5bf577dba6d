from typing import Any

import pytest

from nanoray.config import InputError
from nanoray.stages.rl_config import RLConfig, decide, with_length
from tests.support import tiny_config

MODEL = tiny_config()


def decided(**fields: Any) -> RLConfig:
    return decide(RLConfig(run="r", **fields), MODEL, on_gpu=False, dtype="float32")


def test_the_defaults_are_those_of_d34() -> None:
    config = with_length(decided(), 7473)

    assert (config.examples_per_step, config.num_samples, config.max_new_tokens) == (16, 16, 256)
    assert (config.temperature, config.top_k, config.lr_fraction) == (1.0, 50, 0.05)
    assert config.num_steps == 467
    assert config.validate_every == 60
    assert config.device_batch_size == 8


def test_the_length_is_that_of_the_epochs_unless_given() -> None:
    assert with_length(decided(epochs=2.5), 160).num_steps == 25
    assert with_length(decided(), 3).num_steps == 1
    assert with_length(decided(num_steps=9), 160).num_steps == 9


@pytest.mark.parametrize(("steps", "every"), [(10, 3), (1, 1), (467, 60), (240, 60), (120, 30)])
def test_a_run_is_validated_four_times_and_at_least_every_60_steps(steps: int, every: int) -> None:
    assert with_length(decided(num_steps=steps), 160).validate_every == every
    assert with_length(decided(num_steps=steps, validate_every=7), 160).validate_every == 7


def test_a_warmup_takes_its_part_of_the_warmdown() -> None:
    assert decided(warmup_ratio=0.1).warmdown_ratio == 0.9
    assert decided().warmdown_ratio == 1.0
    assert decided(warmup_ratio=0.1, warmdown_ratio=0.2).warmdown_ratio == 0.2


def test_rows_that_are_no_whole_batches_are_filled_up() -> None:
    assert decided(device_batch_size=7).device_batch_size == 7


def test_held_out_answers_are_drawn_alike_but_for_their_number() -> None:
    config = decided(num_samples=4, validation_samples=2, top_k=0)

    train, held_out = (config.rollout(is_held_out=value) for value in (False, True))

    assert (train.num_samples, held_out.num_samples) == (4, 2)
    assert train.top_k is held_out.top_k is None


def test_the_cache_of_an_engine_holds_at_least_one_whole_context() -> None:
    engine = decided(rollout_sequences=1, max_new_tokens=1).engine(MODEL)

    assert engine.num_blocks == 1 + MODEL.max_seq_len // 16


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"from_": "x::y/sft"}, "--from 'x::y' cannot name a folder"),
        ({"num_samples": 1}, "--num-samples 1 is too small. The least is 2"),
        ({"temperature": 0.0}, "--temperature 0 must be above 0"),
        ({"max_staleness": 1}, "--max-staleness 1 needs --rollout-workers"),
        ({"rollout_workers": -1}, "--rollout-workers -1 is too small"),
        ({"examples_per_step": 0}, "--examples-per-step 0 is too small"),
        ({"lr_fraction": 0.0}, "--lr-fraction 0 must be above 0"),
    ],
)
def test_what_has_no_meaning_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        decided(**fields)

    assert said in str(caught.value)
