from typing import Any

import pytest

from nanoray.config import InputError
from nanoray.stages.finetune_config import (
    COURSES,
    FinetuneConfig,
    SourceAsked,
    decide,
    parse_mixture,
    with_length,
)
from tests.support import tiny_config

MODEL = tiny_config()


def decided(stage: str = "sft", **fields: Any) -> FinetuneConfig:
    config = FinetuneConfig(run="r", **fields)
    return decide(config, COURSES[stage], MODEL, on_gpu=False, dtype="float32")


def test_the_defaults_are_those_of_d34() -> None:
    mid, sft = decided("midtrain"), decided("sft")

    assert (mid.learn, mid.lr_fraction, mid.warmdown_ratio) == ("all", 1.0, 0.2)
    assert (sft.learn, sft.lr_fraction, sft.warmdown_ratio) == ("assistant", 0.02, 1.0)
    d34 = [("smoltalk", None, 1.0), ("mmlu", None, 1.0), ("gsm8k", None, 1.0)]
    made_up = [("identity", None, 2.0), ("simplespelling", 200_000, 1), ("spellingbee", 80_000, 1)]
    assert mid.mixture is not None
    asked = [(one.name, one.limit, one.epochs) for one in parse_mixture(mid.mixture)]
    assert asked == [*d34, *made_up]


def test_a_warmup_takes_its_part_of_the_warmdown() -> None:
    assert decided("sft", warmup_ratio=0.1).warmdown_ratio == 0.9
    assert decided("midtrain", warmup_ratio=0.1).warmdown_ratio == 0.2
    # As a later start reads it: the two are not more than the whole run.
    again = FinetuneConfig(
        warmup_ratio=0.7, warmdown_ratio=decided(warmup_ratio=0.7).warmdown_ratio
    )
    assert again.warmdown_ratio == pytest.approx(0.3)


def test_own_conversations_stand_for_the_mixture_unless_one_is_given() -> None:
    assert decided(data="own.jsonl").mixture == "data"
    assert decided(data="own.jsonl", mixture="data*2,identity").mixture == "data*2,identity"
    assert decided(data="own.jsonl").validation_mixture == "data"


def test_a_mixture_is_validated_on_the_tests_of_its_sources() -> None:
    config = decided(mixture="gsm8k,identity*2,spellingbee=300,arithmetic=9000", data="own")

    assert config.validation_mixture == "gsm8k=1000,identity=1000,spellingbee=300,arithmetic=1000"
    assert decided(mixture="data*3,facts=10", data="own").validation_mixture == "data,facts=10"


def test_a_mixture_is_read_with_counts_and_epochs() -> None:
    assert parse_mixture("gsm8k, identity*2.5,spellingbee=300,facts=10*4") == [
        SourceAsked("gsm8k", None, 1.0),
        SourceAsked("identity", None, 2.5),
        SourceAsked("spellingbee", 300, 1.0),
        SourceAsked("facts", 10, 4.0),
    ]


def test_the_length_follows_from_the_rows_and_the_epochs() -> None:
    config = decided(total_batch_tokens=512)  # 8 rows of 64

    assert with_length(config, 100).num_steps == 12
    assert with_length(decided(total_batch_tokens=512, epochs=2.0), 100).num_steps == 25
    assert with_length(config, 3).num_steps == 1
    assert with_length(decided(num_steps=7), 100).num_steps == 7


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mixture": "gsm8k,,arc"}, "--mixture has '', which is no source. Write NAME"),
        ({"mixture": "gsm8k=0"}, "--mixture has 'gsm8k=0'"),
        ({"mixture": "gsm8k*0"}, "which is no source"),
        ({"validation_mixture": "GSM8K!"}, "has 'GSM8K!'"),
        ({"from_": "a*"}, "--from 'a*' cannot name a folder"),
        ({"epochs": 0.0}, "--epochs 0 must be above 0"),
        ({"lr_fraction": float("nan")}, "--lr-fraction nan must be above 0"),
        ({"learn": "user"}, "--learn user is unknown. Choose assistant or all"),
        ({"max_seq_len": 65}, "--max-seq-len 65 is more than the 64 tokens of the model"),
        ({"total_batch_tokens": 100}, "100 is not a multiple of --max-seq-len 64"),
        ({"total_batch_tokens": 512, "device_batch_size": 3}, "does not divide the 8 rows"),
        ({"warmup_ratio": 0.8, "warmdown_ratio": 0.3}, "more than the whole run"),
        ({"eval_every": 0}, "--eval-every 0 is too small"),
    ],
)
def test_what_has_no_meaning_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        decided(**fields)

    assert said in str(caught.value)
