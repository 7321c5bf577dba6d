"""What a user is told of any finished stage, and its report."""

import statistics

from nanoray.metrics import read_metrics
from nanoray.progress import duration
from nanoray.report import ReportFacts, write_report
from nanoray.shell_words import typed_command
from nanoray.stages.training_job import TrainingJob
from nanoray.storage import StageFolder, read_json
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.checkpoint_name import SavedModel


def trained_lines(job: TrainingJob) -> dict[str, str]:
    """Say what training came to."""
    folder = job.folder
    result = read_json(folder.fs, folder.path("result.json")) or {}
    metrics = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    name = "validation/bits_per_byte"
    final_bpb = next((m[name] for m in reversed(metrics) if name in m), None)
    validation = {} if final_bpb is None else {"validation": f"{final_bpb:.4f} bits per byte"}
    return {
        "training tokens": f"{metrics[-1]['tokens']:,}",
        **validation,
        "training time": duration(sum(m["train/step_seconds"] for m in metrics)),
        "median speed": f"{median([m['train/tokens_per_second'] for m in metrics]):,.0f} tokens/s",
        "median MFU": f"{100 * median([m['train/mfu'] for m in metrics]):.1f} %",
        "skipped steps": f"{metrics[-1].get('train/skipped', 0):,}",
        "dropped by packing": f"{100 * result.get('dropped_tokens_share', 0):.2f} % of the tokens",
        "most memory of a worker": f"{result.get('peak_memory_bytes', 0) / 2**30:.2f} GiB",
        "weights": weights_hash(folder),
    }


def tell(job: TrainingJob, summary: dict[str, str], derivation: dict[str, str]) -> str:
    """Write the report of a stage, and give what the user reads at its end."""
    folder = job.folder
    result = read_json(folder.fs, folder.path("result.json")) or {}
    samples = [(str(prompt), str(text)) for prompt, text in result.get("samples", [])]
    facts = ReportFacts(
        title=f"{folder.run.run} / {folder.name}",
        summary=summary,
        derivation=derivation,
        resume_command=typed_command(),
        samples=samples,
    )
    write_report(folder, facts)
    gap = " -> " if job.recipe.is_chat else ""
    lines = [f"{label:>24}  {value}" for label, value in summary.items()]
    lines += [f"\n> {prompt}{gap}{text}" for prompt, text in samples]
    return "\n".join([*lines, f"\nreport: {folder}/report.html"])


def weights_hash(folder: StageFolder) -> str:
    """Give the SHA-256 of the newest checkpoint's weights."""
    newest = SavedModel(folder, committed_steps(folder)[-1])
    return f"step {newest.step}, sha256 {newest.weights_hash()}"


def median(values: list[float]) -> float:
    """Give the median, without the first tenth, in which compilation falls."""
    return statistics.median(values[len(values) // 10 :])
