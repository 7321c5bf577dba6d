"""Questions that stand in the training text are found, wherever it is read."""

import json
from pathlib import Path

import numpy as np
import pytest

from evals.contamination import WORD, ContaminationConfig, ngram_hashes, question_texts, texts_of
from evals.exam import exam_of
from nanoray.config import InputError
from tests.evals.small_bundle import items, write_bundle
from tests.evals.test_exam import Quiz
from tests.running import Cluster, run_job
from tests.support import embedded_text, write_parquet


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_hashes_are_equal_where_the_words_are() -> None:
    text = embedded_text(20_000)

    hashes, words = ngram_hashes(text, 3), ngrams(text, 3)

    assert len(hashes) == len(words) > 1000
    assert len(set(hashes.tolist())) == len(set(words))
    by_hash = dict(zip(hashes.tolist(), words, strict=True))
    assert all(by_hash[h] == w for h, w in zip(hashes.tolist(), words, strict=True))


def test_case_and_punctuation_do_not_count() -> None:
    same = ngram_hashes("The sky -- IS, blue!", 4), ngram_hashes("the sky is\nblue", 4)

    assert np.array_equal(*same)
    assert len(ngram_hashes("too short", 3)) == 0
    assert not np.array_equal(ngram_hashes("a b", 2), ngram_hashes("b a", 2))


def test_all_of_a_question_is_compared() -> None:
    choosing, filling = items()["a/colors.jsonl"][1], items()["a/pronouns.jsonl"][0]
    assert texts_of(choosing) == ["Which is green? red", "green"]
    assert texts_of(filling) == ["He saw red and ran.", "She saw red and ran."]
    assert question_texts(exam_of(Quiz([("Why?", "So.")]))) == [["Why?", "So."]]


@pytest.mark.slow
@pytest.mark.cluster
def test_questions_in_the_text_are_found_and_others_are_not(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    filler = [embedded_text(60_000)[i : i + 2000] for i in range(0, 60_000, 2000)]
    planted = "As they say: he saw BLUE and... ran. Indeed."
    documents = [*filler[:10], planted, *filler[10:]]
    data = write_parquet(tmp_path / "data", "text.parquet", documents, row_group_size=4)
    flags = ("--data", data, "--eval-bundle", bundle, "--tasks", "pronouns", "--ngram", 5)

    code, output = run_job("contamination.py", *flags, "--json", env=ray_cluster.environment())
    assert code == 0, output
    [task] = json.loads(output[output.index("{\n") :])["tasks"]
    code, table = run_job("contamination.py", *flags, env=ray_cluster.environment())

    assert (task["checked"], task["too_short"], len(task["found"])) == (8, 0, 1)
    assert code == 0
    assert "'He saw blue and ran. | She saw blue and ran.'" in table


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(InputError, match="--ngram 1 is too small"):
        ContaminationConfig(ngram=1)
