"""The whole path of a model as one job: pretrain, midtrain, SFT, RL, and what each stage scores.

What a stage was made from is known by a hash over its settings and the weights it began with, and
stands in pipeline.json. So the same command skips what is done, goes on with what is half done, and
makes anew what follows from something that has changed; what was there is moved aside.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from nanoray.cluster import connection
from nanoray.config import RunConfig, require_positive, to_json
from nanoray.goodput import read_account
from nanoray.ops.pipeline_page import StageFacts, write_page
from nanoray.report_card import read_card
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.rl_config import RLConfig
from nanoray.storage import RunFolder, StageFolder, read_json, write_json
from nanoray.train.checkpoint_name import STAGES, find_model

logger = logging.getLogger(__name__)

Until = Literal["pretrain", "midtrain", "sft", "rl"]


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Train a model through all its stages, measure each, and write one page of it."""

    run: str | None = None
    """Name of the run; by default the depth, as in d20."""
    storage: str | None = None
    """Folder or address (s3://, gs://, ...) in which runs are kept; by default ./runs."""
    depth: int | None = None
    """Transformer blocks; by default 20, 4 on CPUs."""
    until: Until = "rl"
    """The last stage."""
    hub_dir: str | None = None
    """Folder that stands for the Hugging Face hub, for all stages."""
    words: str | None = None
    """Words to spell, for all stages: a file, or "embedded"."""
    identity_file: str | None = None
    """Text file that says who the model is, for all stages."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """As of jobs/pretrain.py."""
    midtrain: FinetuneConfig = field(default_factory=FinetuneConfig)
    """As of jobs/midtrain.py."""
    sft: FinetuneConfig = field(default_factory=FinetuneConfig)
    """As of jobs/sft.py."""
    rl: RLConfig = field(default_factory=RLConfig)
    """As of jobs/rl.py."""
    eval_tasks: str = "core,chat"
    """What each stage is measured by: core, chat, or names of tasks."""
    eval_max_per_task: int | None = None
    """Questions of each task; by default all."""
    eval_bundle: str | None = None
    """Folder or zip file with CORE's tasks; by default the published one is fetched."""
    dollars_per_gpu_hour: float = 3.0
    """Price, for the cost of each stage."""

    def __post_init__(self) -> None:
        require_positive("eval_max_per_task", self.eval_max_per_task)
        require_positive("dollars_per_gpu_hour", self.dollars_per_gpu_hour, least=0)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are asked for, in their order."""
        return STAGES[: STAGES.index(self.until) + 1]


TrainStage = Callable[[Any], str]  # Any: the config of the stage
Measure = Callable[[dict[str, Any]], object]  # Any: settings of different types
"""Measures a model; it is given the settings of jobs/evaluate.py."""


def pipeline(config: PipelineConfig, train: dict[str, TrainStage], measure: Measure) -> str:
    """Run all stages that are asked for, or what is left of them.

    Args:
        config: what the user gave.
        train: each stage by its name.
        measure: how a stage is measured.

    Returns:
        The table of scores, and how to talk to the model.

    Raises:
        InputError: something the user gave does not work out.
    """
    connection.connect()
    on_gpu = connection.cluster_total()["GPU"] >= 1
    depth = config.depth or config.pretrain.depth
    name = config.run or f"d{depth or (20 if on_gpu else 4)}"
    storage = connection.absolute_address(config.storage or "runs")
    run = RunFolder(storage, name)
    for stage in config.stages:
        run_once(stage, stage_config(config, stage, name, storage), run, train[stage])
    for stage in config.stages:
        measure(measured(config, f"{name}/{stage}", storage))
    gpus = int(connection.cluster_total()["GPU"])
    facts = [
        facts_of(run.stage(stage), gpus, config.dollars_per_gpu_hour) for stage in config.stages
    ]
    write_page(run, facts)
    return told(run, facts)


def stage_config(config: PipelineConfig, stage: str, run: str, storage: str) -> RunConfig:
    """Give the config of a stage, with what the pipeline says for all of them."""
    own: RunConfig = getattr(config, stage)
    names = {f.name for f in dataclasses.fields(own)}
    shared = {
        name: getattr(config, name)
        for name in ("depth", "hub_dir", "words", "identity_file")
        if name in names and getattr(config, name) is not None
    }
    return dataclasses.replace(own, run=run, storage=storage, **shared)


def measured(config: PipelineConfig, name: str, storage: str) -> dict[str, Any]:
    """Say how the model of a name is measured."""
    return {
        "run": name,
        "storage": storage,
        "tasks": config.eval_tasks,
        "max_per_task": config.eval_max_per_task,
        "eval_bundle": config.eval_bundle,
        "hub_dir": config.hub_dir,
        "words": config.words,
        "identity_file": config.identity_file,
    }


def run_once(stage: str, config: RunConfig, run: RunFolder, train: TrainStage) -> None:
    """Run a stage, unless it was done with the same settings and from the same weights."""
    inputs = inputs_hash(stage, config, run)
    record = read_json(run.fs, run.path("pipeline.json")) or {}
    begun = record.get(stage)
    if begun == inputs and stage in run.read_state().get("stages_done", []):
        logger.info("%s is done, from the same inputs", run.stage(stage))
        return
    if begun is not None and begun != inputs:
        logger.info("%s was made from other inputs, and is made anew", run.stage(stage))
        config = dataclasses.replace(config, fresh=True)
    write_json(run.fs, run.path("pipeline.json"), {**record, stage: inputs})
    train(config)


def inputs_hash(stage: str, config: RunConfig, run: RunFolder) -> str:
    """Hash the settings that decide a stage's result, and the weights that it begins with."""
    decisive = {
        f.name: value
        for f, value in zip(dataclasses.fields(config), to_json(config).values(), strict=True)
        if f.metadata.get("identity")
    }
    before = STAGES[: STAGES.index(stage)]
    done = run.read_state().get("stages_done", [])
    start = next((name for name in reversed(before) if name in done), None)
    weights = find_model(run.storage, f"{run.run}/{start}").weights_hash() if start else None
    content = json.dumps([decisive, weights], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def facts_of(folder: StageFolder, gpus: int, dollars_per_gpu_hour: float) -> StageFacts:
    """Say what a stage took."""
    account = read_account(folder)
    report = read_json(folder.fs, folder.path("report.json")) or {}
    return StageFacts(
        stage=folder.name,
        seconds=account.total,
        dollars=account.total / 3600 * gpus * dollars_per_gpu_hour if gpus else None,
        goodput=account.seconds["productive"] / account.total if account.total else None,
        summary=dict(report.get("summary", {})),
        samples=[(str(prompt), str(text)) for prompt, text in report.get("samples", [])],
    )


def told(run: RunFolder, facts: list[StageFacts]) -> str:
    """Give what the user reads at the end."""
    card = read_card(run)
    lines = [card.markdown(), ""] if card else []
    lines += [one.line() for one in facts]
    storage = "" if run.storage.endswith("/runs") else f" --storage {run.storage}"
    lines += [
        "",
        f"page: {run}/report.html",
        f"talk to it: python jobs/serve.py {run.run}{storage}",
    ]
    return "\n".join(lines)
