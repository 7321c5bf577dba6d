"""Models that take exams: ours against transformers' class with the same weights."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from evals.candidates import HuggingFaceModel, TrainedModel
from nanoray.config import InputError
from nanoray.text.tokenizer import Tokenizer
from tests.evals.model_folder import write_model_folder
from tests.inference.test_scoring import some_questions
from tests.support import tiny_gpt

CPU = torch.device("cpu")
MESSAGES = [{"role": "user", "content": "Hello you"}, {"role": "assistant", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("hf") / "model")


def test_a_folder_scores_as_our_own_class_does(folder: Path) -> None:
    theirs = HuggingFaceModel(str(folder), torch.float32, CPU)
    ours = TrainedModel(tiny_gpt(rope_dtype="float32"), Tokenizer([]))
    questions = [q for q in some_questions(30, seed=2) if q.longest <= theirs.longest]

    for one, other in zip(ours.score(questions), theirs.score(questions), strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)  # fp32 sums
            assert a.is_greedy == b.is_greedy


def test_a_folder_brings_its_own_tokens_and_template(folder: Path) -> None:
    model = HuggingFaceModel(str(folder), torch.float32, CPU)

    assert model.encode("you Hello") == [2, 1]
    assert model.document("you") == [0, 2]
    assert model.chat_prompt(MESSAGES) == [1, 2]
    assert model.longest == 64
    written = model.write([[1, 2], [1] * 64], max_tokens=3)
    assert isinstance(written[0], str)
    assert written[1] is None


def test_without_a_template_nothing_can_be_asked(folder: Path) -> None:
    model = HuggingFaceModel(str(folder), torch.float32, CPU)
    model.tokenizer.chat_template = None

    with pytest.raises(InputError, match="has no chat template"):
        model.chat_prompt(MESSAGES)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="holds no model that transformers can load"):
        HuggingFaceModel(str(tmp_path), torch.float32, CPU)


def test_weights_that_are_pickled_are_never_read(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")

    with pytest.raises(InputError, match="holds no model that transformers can load"):
        HuggingFaceModel(str(folder), torch.float32, CPU)


def test_answers_do_not_depend_on_how_many_are_written_at_once() -> None:
    tokenizer = Tokenizer([])
    prompts = [tokenizer.encode(text) for text in ("a", "some more", "x" * 30, "y" * 100)]
    written = []
    for batch_size in (1, 3):
        model = tiny_gpt(vocab_size=tokenizer.vocab_size)
        written.append(TrainedModel(model, tokenizer, batch_size=batch_size).write(prompts, 9))

    assert written[0] == written[1]
    assert [text is None for text in written[0]] == [False, False, False, True]


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    tokenizer = Tokenizer([])
    model = tiny_gpt(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        direction = model.unembedding.weight[0].clone()
        model.unembedding.weight.zero_()
        model.unembedding.weight[0xFF] = direction
        model.unembedding.weight[0xFE] = -direction  # of the two, one is the likeliest

    [text] = TrainedModel(model, tokenizer).write([[65]], 4)

    assert text
    assert set(text) == {"\ufffd"}
