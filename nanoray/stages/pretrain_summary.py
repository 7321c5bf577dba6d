"""What a user is told of a finished pretraining run, and its report."""

import lzma

from nanoray.data.plan import read_documents
from nanoray.model.scaling import flops_per_token, num_parameters
from nanoray.stages.pretrain_config import PretrainConfig, budget, rates, validation_rows
from nanoray.stages.stage_driver import planned
from nanoray.stages.stage_summary import tell, trained_lines
from nanoray.stages.training_job import TrainingJob

XZ_BYTES = 8_000_000
"""xz is slow: of a long validation text only the beginning is compressed."""


def finish(job: TrainingJob, config: PretrainConfig) -> str:
    """Write the report, and give the summary that the user sees."""
    summary = {
        "parameters": f"{num_parameters(job.model):,}",
        **trained_lines(job),
        "the same text by xz -9e": f"{xz_bits_per_byte(job, config):.4f} bits per byte",
    }
    return tell(job, summary, derivation(job, config))


def derivation(job: TrainingJob, config: PretrainConfig) -> dict[str, str]:
    """Say what followed from the depth, and how."""
    model = job.model
    lr = rates(config, model)
    plan = budget(config, model)
    return {
        "width": f"64 x depth {model.num_layers} = {model.model_dim}",
        "heads": f"{model.model_dim} / {model.head_dim} = {model.num_heads}",
        "FLOPs per token": (
            f"6 x (parameters - embedding) + 12 x depth x width x T = {flops_per_token(model):.6g}"
        ),
        "steps": (
            f"{plan.tokens:,} tokens / {config.total_batch_tokens:,} per step = {plan.num_steps:,}"
        ),
        "learning rates": (
            f"matrices {lr.matrix:g} (Muon); embedding {lr.embedding:.4g}, unembedding "
            f"{lr.unembedding:.4g} (AdamW, x (width / 768)^-0.5)"
        ),
    }


def xz_bits_per_byte(job: TrainingJob, config: PretrainConfig) -> float:
    """Compress the documents that validation is measured on with `xz -9e`: what a model must beat.

    They come whole and in order, with all the context that rows do not have.
    """
    text, feed = b"", planned(job)
    wanted = validation_rows(config) * feed.plan.max_seq_len
    for unit in feed.plan.validation_units:
        if len(text) >= min(XZ_BYTES, wanted * feed.bytes_per_token):
            break
        text += "\n".join(read_documents(feed.plan.manifest, unit)).encode()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / max(1, len(text))
