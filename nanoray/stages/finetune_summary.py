"""What a user is told of finished midtraining or SFT, and its report."""

from nanoray.data.conversations import CONVERSATIONS, CUT, LEARNED, PADDING, UNLEARNABLE
from nanoray.data.row_counts import ROWS, TOKENS
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.stage_driver import planned
from nanoray.stages.stage_summary import tell, trained_lines
from nanoray.stages.training_job import TrainingJob
from nanoray.storage import read_json


def finish(job: TrainingJob) -> str:
    """Write the report, and give the summary that the user sees."""
    config = job.config
    assert isinstance(config, FinetuneConfig), "made by prepare"
    folder, feed = job.folder, planned(job)
    counts = (read_json(folder.fs, folder.path("rows.json")) or {})["counts"]
    mixed = (read_json(folder.fs, folder.path("mixture", "mixture.json")) or {})["conversations"]
    summary = {"started from": str(config.from_), **trained_lines(job)}
    del summary["dropped by packing"]
    derivation = {
        "mixture": ", ".join(f"{n:,} {name}" for name, n in mixed["train"].items()),
        "rows": (
            f"{counts[CONVERSATIONS]:,} conversations of {counts[TOKENS]:,} tokens in "
            f"{counts[ROWS]:,} rows of {feed.plan.max_seq_len:,}"
        ),
        "learned": f"{config.learn}: {counts[LEARNED]:,} tokens of one epoch",
        "padding": f"{counts[PADDING]:,} tokens",
        "cut at a row's end": f"{counts[CUT]:,} conversations",
        "left out, with nothing to learn": f"{counts[UNLEARNABLE]:,} conversations",
        "steps": (
            f"{job.num_steps:,} of {feed.layout.rows_per_step:,} rows: "
            f"{job.num_steps * feed.layout.rows_per_step / counts[ROWS]:.2f} epochs"
        ),
        "learning rates": f"those of pretraining times {config.lr_fraction:g}",
    }
    return tell(job, summary, derivation)
