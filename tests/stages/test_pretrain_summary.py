"""What a user is told at the end of pretraining."""

import lzma

import pytest

from nanoray.data.plan import read_documents
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.pretrain_summary import derivation, xz_bits_per_byte
from nanoray.stages.stage_driver import planned
from nanoray.stages.training_job import TrainingJob
from tests.stages.test_training_job import job as job_fixture

job = job_fixture


def config_of(job: TrainingJob) -> PretrainConfig:
    assert isinstance(job.config, PretrainConfig)
    return job.config


def test_the_number_to_beat_is_that_of_xz_on_the_text_of_validation(job: TrainingJob) -> None:
    plan = planned(job).plan
    documents = read_documents(plan.manifest, plan.validation_units[0])
    text = "\n".join(documents).encode()

    bits = xz_bits_per_byte(job, config_of(job))

    preset = 9 | lzma.PRESET_EXTREME
    assert bits == pytest.approx(8 * len(lzma.compress(text, preset=preset)) / len(text))


def test_what_followed_from_the_depth_is_told_with_its_derivation(job: TrainingJob) -> None:
    told = derivation(job, config_of(job))

    assert told["width"] == "64 x depth 1 = 64"
    assert told["steps"] == "6,144 tokens / 512 per step = 12"
