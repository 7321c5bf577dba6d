"""What a user is told at the end of RL."""

import json
from dataclasses import replace
from pathlib import Path

from nanoray.metrics import read_from_before
from nanoray.plots import PLOTS, read_history
from nanoray.stages.rl_config import RLConfig
from nanoray.stages.rl_summary import finish
from nanoray.stages.training_job import TrainingJob
from tests.stages.test_training_job import job as job_fixture
from tests.stages.test_training_job import work

job = job_fixture
[PASS_RATE] = [plot for plot in PLOTS if plot.key == "validation/pass_at_1"]


def test_rewards_and_pass_rates_are_told_before_and_after(job: TrainingJob) -> None:
    work(job)  # a run over text; what RL adds to its files is written here
    folder = Path(job.folder.path())
    before = {"validation/pass_at_1": 0.25, "validation/pass_at_1_error": 0.05}
    (folder / "before.json").write_text(json.dumps(before))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record["rl/reward"] = record["step"] / 12
        if record["step"] in (6, 12):
            record["validation/pass_at_1"] = 0.5 + record["step"] / 100
            record["validation/pass_at_1_error"] = 0.04
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    told = finish(replace(job, config=RLConfig(run="r", from_="r/sft@9")))

    assert "pass@1  0.2500 ± 0.0980 before, 0.6200 ± 0.0784 after" in told
    assert "pass@1_error" not in told
    assert "0.083 in the first tenth of the steps, 1.000 in the last" in told
    page = (folder / "report.html").read_text()
    assert "Held-out questions" in page
    curve = read_history(read_from_before(job.folder)).curves[PASS_RATE]
    assert curve.steps.tolist() == [0, 6, 12]
    assert curve.values.tolist() == [0.25, 0.56, 0.62]
    assert "Reward" in page
