"""What a user is told of a finished pretraining run, and its report."""

import lzma
import shlex
import statistics
import sys

from nanoray.data.plan import read_documents
from nanoray.metrics import read_metrics
from nanoray.model.scaling import flops_per_token, num_parameters
from nanoray.progress import duration
from nanoray.report import ReportFacts, write_report
from nanoray.stages.pretrain_config import budget, rates
from nanoray.stages.pretrain_worker import PretrainJob, validation_rows
from nanoray.storage import StageFolder, read_json
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.checkpoint_name import SavedModel

XZ_BYTES = 8_000_000
"""xz is slow: of a long validation text only the beginning is compressed."""


def finish(job: PretrainJob) -> str:
    """Write the report, and give the summary that the user sees."""
    folder = job.folder
    result = read_json(folder.fs, folder.path("result.json")) or {}
    metrics = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    final_bpb = next(
        (
            m["validation/bits_per_byte"]
            for m in reversed(metrics)
            if "validation/bits_per_byte" in m
        ),
        None,
    )
    summary = {
        "parameters": f"{num_parameters(job.model):,}",
        "training tokens": f"{metrics[-1]['tokens']:,}",
        "validation": f"{final_bpb:.4f} bits per byte",
        "the same text by xz -9e": f"{xz_bits_per_byte(job):.4f} bits per byte",
        "training time": duration(sum(m["train/step_seconds"] for m in metrics)),
        "median speed": f"{median([m['train/tokens_per_second'] for m in metrics]):,.0f} tokens/s",
        "median MFU": f"{100 * median([m['train/mfu'] for m in metrics]):.1f} %",
        "skipped steps": f"{metrics[-1].get('train/skipped', 0):,}",
        "dropped by packing": f"{100 * result.get('dropped_tokens_share', 0):.2f} % of the tokens",
        "most memory of a worker": f"{result.get('peak_memory_bytes', 0) / 2**30:.2f} GiB",
        "weights": weights_hash(folder),
    }
    samples = [(str(prompt), str(text)) for prompt, text in result.get("samples", [])]
    facts = ReportFacts(
        title=f"{folder.run.run} / {folder.name}",
        summary=summary,
        derivation=derivation(job),
        resume_command=resume_command(),
        samples=samples,
    )
    write_report(folder, facts)
    lines = [f"{label:>24}  {value}" for label, value in summary.items()]
    lines += [f"\n> {prompt}{text}" for prompt, text in samples]
    return "\n".join([*lines, f"\nreport: {folder}/report.html"])


def derivation(job: PretrainJob) -> dict[str, str]:
    """Say what followed from the depth, and how."""
    config, model = job.config, job.model
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


def resume_command() -> str:
    """Give the command that goes on with this run, as it was typed."""
    return shlex.join(["python", *sys.argv])


def weights_hash(folder: StageFolder) -> str:
    """Give the SHA-256 of the newest checkpoint's weights."""
    newest = SavedModel(folder, committed_steps(folder)[-1])
    return f"step {newest.step}, sha256 {newest.weights_hash()}"


def xz_bits_per_byte(job: PretrainJob) -> float:
    """Compress the documents that validation is measured on with `xz -9e`: what a model must beat.

    They come whole and in order, with all the context that rows do not have.
    """
    text = b""
    wanted = validation_rows(job.config) * job.plan.max_seq_len
    for unit in job.plan.validation_units:
        if len(text) >= min(XZ_BYTES, wanted * job.bytes_per_token):
            break
        text += "\n".join(read_documents(job.plan.manifest, unit)).encode()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / max(1, len(text))


def median(values: list[float]) -> float:
    """Give the median, without the first tenth, in which compilation falls."""
    return statistics.median(values[len(values) // 10 :])
