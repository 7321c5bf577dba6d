"""CORE: golden prompts and draws of nanochat, and scores as its way of scoring gives them."""

import random
from typing import Any

import pytest
import torch

from evals.bench_core import one_at_a_time
from evals.bundle import CoreTask
from evals.candidates import TrainedModel
from evals.core import CROPPED, SHUFFLE_SEED, CoreExam, Prompt, ask, common_length
from evals.exam import NO_NUMBERS
from nanoray.config import DataError
from nanoray.text.tokenizer import Tokenizer
from tests.evals.small_bundle import items
from tests.support import tiny_gpt, tiny_tokenizer

BYTES = Tokenizer([])


def task(kind: str, *, num_shots: int = 0, delimiter: str = " ") -> CoreTask:
    return CoreTask("t", kind, num_shots, delimiter, 0.0, "t.jsonl")


def exam(
    kind: str, rows: list[dict[str, Any]], *, shots: int = 0, delimiter: str = " "
) -> CoreExam:
    """Make an exam; with as many shots as there are other rows, each question shows all of them."""
    return CoreExam(task(kind, num_shots=shots, delimiter=delimiter), rows)


def bytes_model(**fields: Any) -> TrainedModel:
    return TrainedModel(tiny_gpt(vocab_size=BYTES.vocab_size, **fields), BYTES)


def regions(prompts: list[Prompt]) -> list[tuple[int, int]]:
    """Give where each text is scored; <|bos|> has the number 0."""
    return [(len(p.ids) - p.num_scored, len(p.ids)) for p in prompts]


def test_the_order_and_the_shots_are_drawn_as_nanochat_draws_them() -> None:
    order = list(range(10))
    random.Random(SHUFFLE_SEED).shuffle(order)
    rows = [{"context": str(i), "continuation": "x"} for i in range(100)]

    shots = exam("language_modeling", rows, shots=10).shots(0)

    assert order == [0, 3, 7, 2, 1, 6, 4, 5, 8, 9]
    assert [int(s["context"]) for s in shots] == [57, 15, 1, 12, 75, 5, 86, 89, 11, 13]


def test_multiple_choice_is_written_and_scored_as_in_nanochat() -> None:
    rows = [
        {"query": "Q2", "choices": ["c0", "c1"], "gold": 0},
        {"query": "Q1", "choices": ["a0", "a1"], "gold": 0},
    ]
    asked = exam("multiple_choice", rows, shots=1, delimiter="\nAnswer: ")

    shot = "Q1\nAnswer: a0\n\nQ2\nAnswer: "
    assert asked.texts(0) == [f"{shot}c0", f"{shot}c1"]
    assert regions(asked.prompts(bytes_model(), 0)) == [(28, 29), (28, 29)]


def test_a_schema_is_written_and_scored_as_in_nanochat() -> None:
    item = {"context_options": ["He", "She"], "continuation": "ran.", "gold": 0}
    asked = exam("schema", [item, item], shots=1)

    assert asked.texts(0) == ["He ran.\n\nHe ran.", "He ran.\n\nShe ran."]
    assert regions(asked.prompts(bytes_model(), 0)) == [(11, 17), (12, 18)]


def test_language_modeling_is_written_and_scored_as_in_nanochat() -> None:
    rows = [
        {"context": " ctx2 ", "continuation": "cont2"},
        {"context": "ctx1", "continuation": "cont1"},
    ]

    assert exam("language_modeling", rows, shots=1).texts(0) == [
        "ctx1 cont1\n\nctx2",
        "ctx1 cont1\n\nctx2 cont2",
    ]
    assert regions(exam("language_modeling", rows).prompts(bytes_model(), 0)) == [(5, 11)]


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("kind", ["multiple_choice", "schema", "language_modeling"])
def test_scores_are_those_of_one_question_at_a_time(kind: str, batch_size: int) -> None:
    names = {
        "multiple_choice": "a/colors",
        "schema": "a/pronouns",
        "language_modeling": "b/capitals",
    }
    asked = exam(kind, items()[f"{names[kind]}.jsonl"], shots=2)
    tokenizer = tiny_tokenizer()
    model = tiny_gpt(vocab_size=tokenizer.vocab_size)
    candidate = TrainedModel(model, tokenizer, batch_size=batch_size)
    order = list(range(len(asked)))
    random.Random(3).shuffle(order)

    grades = dict(zip(order, asked.take(candidate, order), strict=True))

    for index in order:
        assert grades[index].is_correct == one_at_a_time(asked, candidate, index)


def test_a_text_that_is_too_long_loses_its_beginning() -> None:
    prompts = [Prompt([0, 1, 2, 3, 4], 2), Prompt([0, 1, 2, 9], 1)]

    whole, cut = ask(prompts, longest=5), ask(prompts, longest=3)

    assert [(list(q.prefix), [list(o) for o in q.options]) for q in whole] == [
        ([0, 1, 2], [[3, 4], [9]])
    ]
    assert [(list(q.prefix), [list(o) for o in q.options]) for q in cut] == [
        ([2], [[3, 4]]),
        ([1, 2], [[9]]),
    ]


def test_a_question_that_was_cut_is_told_of() -> None:
    asked = exam("schema", items()["a/pronouns.jsonl"])
    short, long = bytes_model(max_seq_len=8, rope_reach=1), bytes_model()

    assert [g.note for g in asked.take(short, [0, 1])] == [CROPPED] * 2
    assert [g.note for g in asked.take(long, [0, 1])] == [""] * 2


def test_texts_that_are_equal_or_begin_each_other_are_scored_too() -> None:
    rows = [{"query": "Q", "choices": ["a", "ab", "a"], "gold": 0}] * 2

    assert len(exam("multiple_choice", rows).take(bytes_model(), [0, 1])) == 2


def test_too_few_examples_for_the_shots_are_refused() -> None:
    with pytest.raises(
        DataError, match="t shows 8 solved examples before each question, and there are 8"
    ):
        exam("schema", items()["a/pronouns.jsonl"], shots=8)


def test_rows_share_what_they_begin_with() -> None:
    assert common_length([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_length([[1], [2]]) == 0


def test_a_model_without_finite_numbers_is_told_of() -> None:
    candidate = bytes_model()
    with torch.no_grad():
        candidate.model.unembedding.weight.fill_(torch.nan)

    grades = exam("schema", items()["a/pronouns.jsonl"]).take(candidate, [0, 1])

    assert grades == [NO_NUMBERS] * 2
