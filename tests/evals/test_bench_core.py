"""The benchmark of CORE: it compares two ways that agree."""

import json
from pathlib import Path

import pytest

from evals.bench_core import CoreBench, bench_core
from nanoray.config import InputError
from nanoray.storage import RunFolder
from tests.evals.small_bundle import write_bundle
from tests.saved_model import save_model
from tests.support import tiny_gpt, tiny_tokenizer


def test_both_ways_give_the_same_answers(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_gpt(vocab_size=tokenizer.vocab_size)
    save_model(RunFolder(str(tmp_path), "r").stage("pretrain"), model, tokenizer)
    bundle = str(write_bundle(tmp_path / "bundle"))

    found = json.loads(bench_core(CoreBench(run="r", storage=str(tmp_path), eval_bundle=bundle)))

    assert (found["questions"], found["differing_answers"]) == (40, 0)
    assert found["questions_per_second"] > 0
    assert set(found["tasks"]) == {"colors", "pronouns", "capitals"}


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(InputError, match="--per-task 5 is too small"):
        CoreBench(run="r", per_task=5)
    with pytest.raises(InputError, match="--dtype int8 is unknown"):
        CoreBench(run="r", dtype="int8")
    with pytest.raises(InputError, match=r"--run 'a\*' cannot name a folder"):
        CoreBench(run="a*")
