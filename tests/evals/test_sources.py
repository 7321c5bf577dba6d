from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals import TaskSettings
from evals.sources import DEFAULT_SIZES, SOURCES, task_of
from nanoray.config import InputError
from nanoray.stages.rl_config import RLConfig
from nanoray.text.chat import render
from tests.evals.local_hub import local_hub
from tests.support import tiny_tokenizer

FROM_DATA = ["smoltalk", "mmlu", "arc-easy", "arc-challenge", "gsm8k"]
MADE_UP = ["identity", "simplespelling", "spellingbee", "arithmetic"]
MADE_UP += ["quickspelling", "quickarithmetic", "facts"]
OFFLINE = TaskSettings(words="embedded")


def test_every_source_is_read_from_data_or_made_up() -> None:
    assert list(SOURCES) == [*FROM_DATA, *MADE_UP]
    assert {*DEFAULT_SIZES, "facts"} == set(MADE_UP)


@pytest.mark.parametrize("name", FROM_DATA)
def test_data_are_read_from_the_folder_that_is_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--hub-dir .* is no folder"):
        SOURCES[name](TaskSettings(hub_dir=str(tmp_path / "none")), "train", None)


@pytest.mark.parametrize("name", MADE_UP)
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_made_up_needs_no_network_and_has_the_size_that_is_asked_for(
    name: str, split: Literal["train", "test"]
) -> None:
    lessons = SOURCES[name](OFFLINE, split, 5)

    assert len(lessons) == 5
    for index in range(5):
        ids, mask = render(lessons.example(index).messages, tiny_tokenizer())
        assert len(ids) == len(mask)
        assert any(mask)


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("identity", 1_000, 256),
        ("simplespelling", 200_000, 256),
        ("spellingbee", 80_000, 256),
        ("arithmetic", 20_000, 256),
        ("quickspelling", 1_000, 256),
        ("quickarithmetic", 1_000, 256),
    ],
)
def test_without_a_size_a_source_has_its_own(name: str, train: int, test: int) -> None:
    sizes = [len(SOURCES[name](OFFLINE, split, None)) for split in ("train", "test")]

    assert sizes == [train, test]


def test_the_train_split_of_gsm8k_is_what_is_trained_on() -> None:
    settings = TaskSettings(hub_dir=local_hub())

    sizes = [len(SOURCES["gsm8k"](settings, split, 5)) for split in ("train", "test")]

    assert sizes == [7_473, 1_319]


@pytest.mark.parametrize("name", ["facts", "identity"])
def test_what_an_answer_with_all_words_would_get_right_gives_no_rewards(name: str) -> None:
    with pytest.raises(InputError, match=rf"--tasks has '{name}', and no such task gives rewards"):
        task_of(RLConfig(), name, "train")


def test_mmlu_is_trained_on_questions_from_other_exams(tmp_path: Path) -> None:
    file = tmp_path / "cais/mmlu/auxiliary_train/train.parquet"
    file.parent.mkdir(parents=True)
    row = {"question": "1+1?", "choices": ["1", "2", "3", "4"], "answer": 1}
    pq.write_table(pa.table({"train": [row]}), file)

    lessons = SOURCES["mmlu"](TaskSettings(hub_dir=str(tmp_path)), "train", None)

    assert lessons.example(0).messages[-1]["content"] == "B"


def test_the_identity_is_the_one_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "me.txt").write_text("name: Rob\nmaker: Ann\n")

    lessons = SOURCES["identity"](TaskSettings(identity_file=str(tmp_path / "me.txt")), "train", 50)

    said = [lessons.example(index).messages[-1]["content"] for index in range(50)]
    assert any("Rob" in text for text in said)
