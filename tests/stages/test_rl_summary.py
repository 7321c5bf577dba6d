"""What a user is told at the end of RL."""

import json
from dataclasses import replace
from pathlib import Path

from nanoray.stages.rl_config import RLConfig
from nanoray.stages.rl_summary import finish
from nanoray.stages.training_job import TrainingJob
from tests.stages.test_training_job import job as job_fixture
from tests.stages.test_training_job import work

job = job_fixture


def test_rewards_and_pass_rates_are_told_before_and_after(job: TrainingJob) -> None:
    work(job)  # a run over text; what RL adds to its files is written here
    folder = Path(job.folder.path())
    (folder / "before.json").write_text(json.dumps({"validation/pass_at_1": 0.25}))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record["rl/reward"] = record["step"] / 12
        if record["step"] in (6, 12):
            record["validation/pass_at_1"] = 0.5 + record["step"] / 100
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    told = finish(replace(job, config=RLConfig(run="r", from_="r/sft@9")))

    assert "pass@1  0.2500 before, 0.6200 after" in told
    assert "0.083 in the first tenth of the steps, 1.000 in the last" in told
    page = (folder / "report.html").read_text()
    assert "Held-out questions" in page
    assert "Reward" in page
