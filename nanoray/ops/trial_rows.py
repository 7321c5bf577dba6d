"""Rows of a sweep's table, read from the folders of its trials: the one truth of how they stand."""

import dataclasses
import math
import statistics
from typing import Any

from nanoray.credentials import without_secrets
from nanoray.goodput import read_account
from nanoray.metrics import read_metrics
from nanoray.model.scaling import flops_per_token, num_parameters
from nanoray.ops.trial_branch import steps_taken_over
from nanoray.ops.trial_table import Status, TrialRow
from nanoray.ops.trials import Trial
from nanoray.report_card import FIRST, reports_of, scores_of
from nanoray.stages.pretrain import STAGE
from nanoray.stages.pretrain_config import model_config
from nanoray.storage import RunFolder, StageFolder, read_json, write_json

OUTCOME_FILE = "outcome.json"
BITS = "validation/bits_per_byte"


def folder_of(trial: Trial) -> StageFolder:
    """Give the folder of a trial's only stage."""
    assert trial.config.storage, "decided"
    return RunFolder(trial.config.storage, trial.name).stage(STAGE)


def is_done(trial: Trial) -> bool:
    """Say whether a trial has come to its end."""
    return folder_of(trial).run.is_done(STAGE)


def write_outcome(trial: Trial, status: Status, reason: str) -> None:
    """Keep why a trial did not come to its end."""
    folder = folder_of(trial).run
    outcome = {"status": status.value, "reason": without_secrets(reason)}
    write_json(folder.fs, folder.path(OUTCOME_FILE), outcome)


def forget_outcome(trial: Trial) -> None:
    """Forget why an earlier start of a trial ended, because another one begins."""
    folder = folder_of(trial).run
    if folder.fs.exists(folder.path(OUTCOME_FILE)):
        folder.fs.rm_file(folder.path(OUTCOME_FILE))


def read_outcome(trial: Trial) -> tuple[Status, str]:
    """Say how a trial stands, and why."""
    folder = folder_of(trial).run
    if is_done(trial):
        return Status.DONE, ""
    told = read_json(folder.fs, folder.path(OUTCOME_FILE))
    if told is None:
        return Status.WAITING, ""
    return Status(told["status"]), str(told["reason"])


def planned_row(trial: Trial, device: str) -> TrialRow:
    """Give what is known of a trial before it begins."""
    config, model, length = trial.config, model_config(trial.config), trial.length
    assert config.depth, "decided"
    assert config.total_batch_tokens, "decided"
    embedding = model.vocab_size * model.model_dim
    return TrialRow(
        name=trial.name,
        status=Status.WAITING,
        depth=config.depth,
        tokens_per_param=config.tokens_per_param or length.tokens_per_param,
        seed=config.seed,
        parameters=num_parameters(model),
        embedding_parameters=embedding,
        unembedding_parameters=embedding,
        matrix_parameters=num_parameters(model) - 2 * embedding,
        vocab_size=model.vocab_size,
        max_seq_len=model.max_seq_len,
        head_dim=model.head_dim,
        total_batch_tokens=config.total_batch_tokens,
        num_steps=length.num_steps,
        tokens=length.tokens,
        flops_per_token=flops_per_token(model),
        flops=length.flops,
        device=device,
        num_workers=int(config.num_workers or 1),
    )


def row_of(trial: Trial, device: str) -> TrialRow:
    """Give all that is known of a trial."""
    row, folder = planned_row(trial, device), folder_of(trial)
    status, reason = read_outcome(trial)
    taken_over = steps_taken_over(folder)
    records = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    own = [record for record in records if record["step"] > taken_over]
    row = dataclasses.replace(row, status=status, reason=reason, steps_taken_over=taken_over)
    if own:
        result = read_json(folder.fs, folder.path("result.json")) or {}
        row = dataclasses.replace(
            row,
            worker_seconds=row.num_workers * sum(record["train/step_seconds"] for record in own),
            tokens_per_second=statistics.median(r["train/tokens_per_second"] for r in own),
            peak_memory_bytes=int(result.get("peak_memory_bytes", 0)),
        )
    # A branch whose learning rate never falls has no step of its own, and its trunk's result.
    is_measured = records and status is Status.DONE
    return with_results(row, folder, records[-1]) if is_measured else row


def with_results(row: TrialRow, folder: StageFolder, last: dict[str, Any]) -> TrialRow:  # Any: JSON
    """Add what a trial that has come to its end is measured by."""
    bits = last.get(BITS)
    if bits is None or not math.isfinite(bits):
        why = f"its validation after step {last['step']} gave {bits} bits per byte"
        return dataclasses.replace(row, status=Status.DIVERGED, reason=why)
    row = dataclasses.replace(row, bits_per_byte=bits)
    scores = [scores_of(report).get(FIRST) for report in reports_of(folder)]
    measured = [score for score in scores if score is not None and score.step == last["step"]]
    if not measured:
        return row
    best = max(measured, key=lambda score: score.rank)
    return dataclasses.replace(row, core=best.value, is_core_sample=best.is_sample)


def newest_step(folder: StageFolder) -> dict[str, Any]:  # Any: JSON
    """Give the newest line of a trial's metrics; empty before there is one."""
    records = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    return records[-1] if records else {}


def seconds_spent(trial: Trial) -> float:
    """Count the time for which a trial has held its workers, starts and lost steps included."""
    account = read_account(folder_of(trial))
    return int(trial.config.num_workers or 1) * (account.total - account.seconds["stopped"])
