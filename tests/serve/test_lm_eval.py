"""lm-eval's own command line against the server, without a hub."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoray.model.gpt import GPT
from tests.chat_run import chat_model, tokenizer
from tests.serve.server import MODEL, LocalServer

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

TASK = """
task: colors
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""
WORDS = [
    *("sky", "grass", "blue", "green", "one", "two", "three", "four"),
    *("The", "is", "are", "and"),
]


def make_items() -> list[dict[str, Any]]:
    """Make questions with three endings each, of the words that the model knows."""
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    return [
        {
            "question": words(rng.randrange(1, 8)),
            "choices": [words(rng.randrange(1, 4)) for _ in range(3)],
            "answer": rng.randrange(3),
        }
        for _ in range(40)
    ]


@torch.no_grad()
def score(model: GPT, question: str, choice: str) -> float:
    """Sum the log-probabilities of an ending in one full forward pass."""
    whole = tokenizer().encode(f"{question} {choice}")
    begin = len(tokenizer().encode(question))
    logprobs = model(torch.tensor([whole]))[0].log_softmax(-1)
    return sum(float(logprobs[place - 1, whole[place]]) for place in range(begin, len(whole)))


@pytest.mark.slow
def test_lm_eval_gets_the_scores_of_full_forward_passes(
    server: LocalServer, tmp_path: Path
) -> None:
    items = make_items()
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "colors.yaml").write_text(TASK.format(file=tmp_path / "items.jsonl"))
    address = f"base_url={server.url}/v1/completions,model={MODEL},num_concurrent=4"
    command = ["run", "--model", "local-completions", "--model_args", address]
    command += ["--tasks", "colors", "--include_path", str(tmp_path), "--log_samples"]
    command += ["--output_path", str(tmp_path / "out"), "--batch_size", "8"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}

    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr[-3_000:]
    [samples] = (tmp_path / "out").rglob("samples_colors_*.jsonl")
    model = chat_model()
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert len(rows) == len(items)
    for row, item in zip(rows, items, strict=True):
        ours = [score(model, item["question"], choice) for choice in item["choices"]]
        theirs = [float(response[0]) for response in row["filtered_resps"]]
        assert theirs == pytest.approx(ours, abs=1e-3)  # fp32, summed in another order
        assert ours.index(max(ours)) == theirs.index(max(theirs))
