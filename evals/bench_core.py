"""CORE by shared beginnings and without padding, against one question at a time as nanochat asks.

Both ways run in this process by turns, on the same model and questions; their answers must agree.
"""

import json
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from evals.candidates import TrainedModel
from evals.core import CoreExam
from evals.exam_plan import ExamConfig, plan_exams
from nanoray.cluster import connection
from nanoray.config import InputError, require_checkpoint_name, require_positive
from nanoray.model.gpt import DTYPES
from nanoray.train.checkpoint_name import find_model
from nanoray.train.device import own_device, prepare_process


@dataclass(frozen=True, kw_only=True)
class CoreBench:
    """Time CORE on a checkpoint: our way, and one question at a time with every option in full."""

    run: str
    """RUN, RUN/stage or RUN/stage@step."""
    storage: str | None = None
    """Where runs are kept; by default ./runs."""
    eval_bundle: str | None = None
    """Folder or zip file with CORE's tasks; by default the published one is fetched."""
    per_task: int = 60
    """Questions of each task."""
    dtype: str = "float32"
    """Precision of both ways."""
    batch_size: int = 32
    """Questions at once, our way."""

    def __post_init__(self) -> None:
        require_checkpoint_name("--run", self.run)
        require_positive("per_task", self.per_task, least=11)
        require_positive("batch_size", self.batch_size)
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype {self.dtype} is unknown. Choose float32 or bfloat16.")


def bench_core(config: CoreBench) -> str:
    """Run the benchmark; gives one line of JSON."""
    prepare_process()
    saved = find_model(connection.absolute_address(config.storage or "runs"), config.run)
    device = own_device()
    model = saved.load(DTYPES[config.dtype], device).requires_grad_(False)
    candidate = TrainedModel(model, saved.tokenizer(), batch_size=config.batch_size)
    plan = plan_exams(ExamConfig(eval_bundle=config.eval_bundle, max_per_task=config.per_task))
    rows: dict[str, dict[str, float]] = {}
    for exam in plan.exams:
        assert isinstance(exam, CoreExam), "CORE has no others"
        indices = range(len(exam))
        exam.take(candidate, indices[:2])  # warms up
        began = time.perf_counter()
        ours = [grade.is_correct for grade in exam.take(candidate, indices)]
        half = time.perf_counter()
        theirs = [one_at_a_time(exam, candidate, index) for index in indices]
        ended = time.perf_counter()
        rows[exam.name] = {
            "questions": len(exam),
            "seconds": round(half - began, 3),
            "seconds_one_at_a_time": round(ended - half, 3),
            "differing_answers": sum(a != b for a, b in zip(ours, theirs, strict=True)),
        }
    count = sum(row["questions"] for row in rows.values())
    fast = sum(row["seconds"] for row in rows.values())
    slow = sum(row["seconds_one_at_a_time"] for row in rows.values())
    facts = {
        "benchmark": "core",
        "model": saved.name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": config.dtype,
        "questions": count,
        "questions_per_second": round(count / fast, 2),
        "one_at_a_time_per_second": round(count / slow, 2),
        "ratio": round(slow / fast, 2),
        "differing_answers": sum(row["differing_answers"] for row in rows.values()),
    }
    return json.dumps({**facts, "tasks": rows})


@torch.inference_mode()
def one_at_a_time(exam: CoreExam, candidate: TrainedModel, index: int) -> bool:
    """Score one question by a pass over all its texts in full, padded, with all logits."""
    prompts = exam.prompts(candidate, index)
    T = min(candidate.longest, max(len(prompt.ids) for prompt in prompts))
    device = candidate.model.embedding.weight.device
    ids = torch.full((len(prompts), T), candidate.tokenizer.bos_id, device=device)
    kept = [prompt.ids[-T:] for prompt in prompts]
    for row, tokens in enumerate(kept):
        ids[row, : len(tokens)] = torch.tensor(tokens, device=device)
    logits = candidate.model(ids)  # (options, T, V)
    regions = [
        (max(1, len(tokens) - prompt.num_scored), len(tokens))
        for tokens, prompt in zip(kept, prompts, strict=True)
    ]
    if exam.task.kind == "language_modeling":
        start, end = regions[0]
        return bool((logits[0, start - 1 : end - 1].argmax(-1) == ids[0, start:end]).all())
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    means = [
        losses[row, start - 1 : end - 1].mean().item() for row, (start, end) in enumerate(regions)
    ]
    return means.index(min(means)) == exam.items[index]["gold"]
