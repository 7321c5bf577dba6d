"""What a user is told at the end of midtraining or SFT."""

import json
from dataclasses import replace
from pathlib import Path

from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.finetune_summary import finish
from nanoray.stages.training_job import TrainingJob
from tests.stages.test_training_job import job as job_fixture
from tests.stages.test_training_job import work

job = job_fixture


def test_the_report_says_what_was_learned_and_what_was_left_out(job: TrainingJob) -> None:
    work(job)  # its rows are text here; what is told of conversations comes from the counts
    config = FinetuneConfig(run="r", from_="r/pretrain@360", learn="assistant", lr_fraction=0.02)
    folder = Path(job.folder.path())
    counts = {"rows": 24, "tokens": 1000, "conversations": 70, "padding tokens": 9}
    counts |= {"cut conversations": 3, "conversations without a token to learn": 2}
    (folder / "rows.json").write_text(json.dumps({"counts": {**counts, "tokens to learn": 600}}))
    (folder / "mixture").mkdir()
    mixed = {"conversations": {"train": {"GSM8K": 50, "identity": 20}}}
    (folder / "mixture/mixture.json").write_text(json.dumps(mixed))

    told = finish(replace(job, config=config))

    page = (folder / "report.html").read_text()
    for said in ("50 GSM8K, 20 identity", "70 conversations of 1,000 tokens in 24 rows"):
        assert said in page
    for said in ("assistant: 600 tokens", "3 conversations", "2 conversations", "4.00 epochs"):
        assert said in page
    assert "started from  r/pretrain@360" in told
