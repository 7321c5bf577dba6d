"""What a user is told of finished reinforcement learning, and its report."""

import statistics

from nanoray.metrics import BEFORE_FILE, Z_95, read_metrics
from nanoray.rl.pass_rate import PassRate
from nanoray.stages.rl_config import RLConfig
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
    after: dict[str, float] = {}
    for record in records:
        after |= {name: value for name, value in record.items() if name in before}
    summary = {"started from": str(config.from_), **trained_lines(job)}
    del summary["dropped by packing"]
    summary["mean reward"] = (
        f"{statistics.mean(rewards[:tenth]):.3f} in the first tenth of the steps, "
        f"{statistics.mean(rewards[-tenth:]):.3f} in the last"
    )
    for name in before:
        if name.startswith("validation/") and name != PassRate.error_key:
            told = [rate(values, name) for values in (before, {**before, **after})]
            label = name.removeprefix("validation/").replace("_at_", "@")
            summary[label] = f"{told[0]} before, {told[1]} after"
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


def rate(measured: dict[str, float], name: str) -> str:
    """Write a pass rate, that of one answer with half of its 95 % interval."""
    error = measured.get(PassRate.error_key) if name == PassRate.key else None
    return f"{measured[name]:.4f}" + ("" if error is None else f" ± {Z_95 * error:.4f}")
