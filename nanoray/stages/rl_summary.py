"""What a user is told of finished reinforcement learning, and its report."""

import statistics

from nanoray.metrics import read_metrics
from nanoray.stages.rl_config import RLConfig
from nanoray.stages.rl_feed import BEFORE_FILE
from nanoray.stages.stage_summary import tell, trained_lines
from nanoray.stages.training_job import TrainingJob
from nanoray.storage import read_json


def finish(job: TrainingJob) -> str:
    """Write the report, and give the summary that the user sees."""
    config, folder = job.config, job.folder
    assert isinstance(config, RLConfig), "made by prepare"
    before = read_json(folder.fs, folder.path(BEFORE_FILE)) or {}
    records = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    rewards = [record["rl/reward"] for record in records]
    tenth = max(1, len(rewards) // 10)
    names = [name for name in before if name.startswith("validation/")]
    after = {name: value for record in records for name, value in record.items() if name in names}
    summary = {"started from": str(config.from_), **trained_lines(job)}
    del summary["dropped by packing"]
    summary["mean reward"] = (
        f"{statistics.mean(rewards[:tenth]):.3f} in the first tenth of the steps, "
        f"{statistics.mean(rewards[-tenth:]):.3f} in the last"
    )
    for name in names:
        label = name.removeprefix("validation/").replace("_at_", "@")
        summary[label] = f"{before[name]:.4f} before, {after.get(name, before[name]):.4f} after"
    derivation = {
        "questions": (
            f"{config.tasks}: {config.examples_per_step} in each of {job.num_steps:,} steps, "
            f"{config.num_samples} answers to each"
        ),
        "loss": "-(reward - mean of the group) x log-probability, summed over the tokens that the "
        "model drew, divided by their number in the step",
        "learning rates": f"those of pretraining times {config.lr_fraction:g}",
    }
    return tell(job, summary, derivation)
