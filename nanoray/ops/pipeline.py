"""The whole path of a model as one job: pretrain, midtrain, SFT, RL, and what each stage scores.

What a stage was made from stands in its own folder: the settings it was decided with, the hash of
the weights it began with, a fingerprint of its sources. So the same command skips what is done,
goes on with what is half done, and makes anew what follows from something that has changed; what
was there is moved aside. Pretraining is never made anew by itself: what differs is refused.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from nanoray.cluster import connection
from nanoray.config import (
    DataError,
    InputError,
    RunConfig,
    flag,
    require_positive,
    require_run_name,
    to_json,
)
from nanoray.data.datasets import DATASETS
from nanoray.data.listing import find_shards
from nanoray.data.manifest import Manifest, check_unchanged
from nanoray.goodput import read_account
from nanoray.ops.pipeline_page import StageFacts, total_of, write_page
from nanoray.report_card import read_card
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.rl_config import RLConfig
from nanoray.stages.start import (
    changed_facts,
    has_mixture,
    source_of,
    sources_now,
    with_absolute_sources,
)
from nanoray.storage import RunFolder, StageFolder, read_json
from nanoray.text.tokenizer_file import load_tokenizer
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.checkpoint_name import STAGES, SavedModel, find_steps

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
    dollars_per_gpu_hour: float | None = None
    """Price, for the cost of each stage; by default that of its kind (nanoray/prices.py)."""

    def __post_init__(self) -> None:
        require_run_name("--run", self.run)
        require_positive("eval_max_per_task", self.eval_max_per_task)
        require_positive("dollars_per_gpu_hour", self.dollars_per_gpu_hour, least=0)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are asked for, in their order."""
        return STAGES[: STAGES.index(self.until) + 1]


@dataclass(frozen=True)
class Parts:
    """What a pipeline is put together from, by its job."""

    train: dict[str, Callable[[Any], str]]  # Any: the config of the stage
    """Each stage by its name."""
    check: Callable[[str, Any], None]  # Any: the config of the stage
    """Reads the sources of a stage, and raises what it would raise hours later."""
    measure: Callable[[dict[str, Any]], object]  # Any: settings of different types
    """Measures a model; it is given the settings of jobs/evaluate.py."""
    check_measure: Callable[[dict[str, Any]], object]  # Any: as above
    """Reads the questions."""


def pipeline(config: PipelineConfig, parts: Parts) -> str:
    """Run all stages that are asked for, or what is left of them.

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
    stages = {stage: stage_config(config, stage, name, storage) for stage in config.stages}
    for stage in stages_to_check(stages, run):
        parts.check(stage, stages[stage])
    parts.check_measure(measured(config, f"{name}/{STAGES[0]}", storage))
    for stage, own in stages.items():
        run_once(stage, own, run, parts.train[stage])
    began = time.monotonic()
    for stage in stages:
        if committed_steps(run.stage(stage)):
            parts.measure(measured(config, f"{name}/{stage}", storage))
        else:
            logger.warning("%s has no checkpoint any more, and is not measured", run.stage(stage))
    facts = [facts_of(run.stage(stage)) for stage in stages]
    facts.append(StageFacts.of_evaluation(time.monotonic() - began))
    write_page(run, facts)
    return told(run, facts)


def stage_config(config: PipelineConfig, stage: str, run: str, storage: str) -> RunConfig:
    """Give the config of a stage, with what the pipeline says for all of them."""
    own: RunConfig = getattr(config, stage)
    names = {f.name for f in dataclasses.fields(own)}
    shared = {
        name: getattr(config, name)
        for name in ("depth", "hub_dir", "words", "identity_file", "dollars_per_gpu_hour")
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


def stages_to_check(stages: dict[str, RunConfig], run: RunFolder) -> list[str]:
    """Name the stages that will read their sources; a mixture that is stored needs its no more."""
    found, is_chain_whole = [], True
    for stage, own in stages.items():
        folder = run.stage(stage)
        is_begun = folder.read_config() is not None
        is_kept = is_finished(stage, run) or (is_begun and has_mixture(folder))
        if not is_kept or (is_chain_whole and differences(stage, own, run)):
            found.append(stage)
        is_chain_whole = is_chain_whole and is_finished(stage, run)
    return found


def run_once(stage: str, config: RunConfig, run: RunFolder, train: Callable[[Any], str]) -> None:
    """Run a stage, unless it was done from what is asked for now."""
    changed = differences(stage, config, run)
    if is_finished(stage, run) and not changed and not config.fresh:
        logger.info("%s is done, from the same inputs", run.stage(stage))
        if not run.fs.exists(run.stage(stage).path("report.json")):
            train(config)  # ended before its evaluations and its report
        return
    if changed and stage != STAGES[0]:
        logger.info("%s began with other %s, and is made anew", run.stage(stage), changed)
        config = dataclasses.replace(config, fresh=True)
    train(config)


def is_finished(stage: str, run: RunFolder) -> bool:
    """Say whether a stage has come to its end, and nobody has deleted its folder since."""
    return run.is_done(stage) and run.stage(stage).read_config() is not None


def differences(stage: str, config: RunConfig, run: RunFolder) -> str:
    """Name what a stage that has begun was made from, and is not any more.

    What is left open is as it was.
    """
    folder = run.stage(stage)
    saved = folder.read_config()
    if saved is None:
        return ""
    asked = {
        f.name: value
        for f, value in zip(dataclasses.fields(config), to_json(config).values(), strict=True)
        if f.metadata.get("identity") and value is not None
    }
    start = None
    if stage != STAGES[0]:
        named = asked.get("from_")
        start = start_of(folder, named)
        asked |= {"from_": start.name} if named and start else {}
    changed = [flag(name) for name, value in asked.items() if saved.get(name) != value]
    if isinstance(config, PretrainConfig):
        return " and ".join(changed + other_inputs(folder, config, saved.get("data")))
    # The hash stands beside the weights: they are read and verified by the stage that needs them.
    given = with_absolute_sources(config)
    sources = sources_now(folder, given, given)
    facts: dict[str, Any] = {"sources": sources}
    if start is not None:
        facts |= {"from": start.name, "weights": start.weights_hash()}
    return " and ".join(changed + changed_facts(folder, facts, getattr(config, "hub_dir", None)))


def start_of(folder: StageFolder, named: str | None) -> SavedModel | None:
    """Give what a stage starts from; None where it is finished, and that has gone since.

    Raises:
        InputError: it has gone, and the stage needs it.
    """
    run = folder.run
    try:
        return SavedModel(*newest_of(run, source_of(folder, named)))
    except InputError as error:
        if not is_finished(folder.name, run):
            raise
        logger.warning("%s is finished, and what it began with is gone: %s", folder, error)
        return None


def other_inputs(folder: StageFolder, config: PretrainConfig, began_with: str | None) -> list[str]:
    """Name what pretraining read and is not any more; data that are gone are not compared."""
    changed, run = list[str](), folder.run
    if config.tokenizer is not None and run.fs.exists(run.tokenizer_file):
        named = load_tokenizer(connection.absolute_address(config.tokenizer))
        if named.hash != load_tokenizer(run.tokenizer_address).hash:
            changed.append("--tokenizer")
    data = config.data
    if data and began_with not in (data, connection.absolute_address(data)):
        return [*changed, "--data"]
    saved = read_json(folder.fs, folder.path("manifest.json"))
    if saved is None:
        return changed
    manifest = Manifest.from_json(saved)
    is_named = data is None or data in DATASETS
    address = manifest.root if is_named else connection.absolute_address(str(data))
    try:
        find_shards(address)
    except DataError:
        logger.warning("%s was trained on %s, and no text is there now", folder, address)
        return changed
    try:
        check_unchanged(manifest, address)
    except DataError:
        changed.append("contents of --data")
    return changed


def newest_of(run: RunFolder, name: str) -> tuple[StageFolder, int]:
    """Give stage and newest step of a name."""
    stage, steps = find_steps(run.storage, name)
    return stage, steps[-1]


def facts_of(folder: StageFolder) -> StageFacts:
    """Say what a stage took; the time in which nobody ran it does not count."""
    account = read_account(folder)
    seconds = account.total - account.seconds["stopped"]
    report = read_json(folder.fs, folder.path("report.json")) or {}
    return StageFacts(
        stage=folder.name,
        seconds=seconds,
        dollars=account.dollars,
        goodput=account.seconds["productive"] / seconds if seconds else None,
        summary=dict(report.get("summary", {})),
        samples=[(str(prompt), str(text)) for prompt, text in report.get("samples", [])],
    )


def told(run: RunFolder, facts: list[StageFacts]) -> str:
    """Give what the user reads at the end."""
    trained = [one.stage for one in facts if one.stage in STAGES]
    card = read_card(run, trained)
    lines = [card.markdown(), ""] if card else []
    lines += [*(one.line() for one in facts), f"{'all':>5}  {total_of(facts)}"]
    # Later stages, if there are any, were made from others.
    name = run.run if trained[-1] == STAGES[-1] else f"{run.run}/{trained[-1]}"
    is_default = run.storage == connection.absolute_address("runs")
    storage = "" if is_default else f" --storage {run.storage}"
    lines += [
        "",
        f"page: {run}/report.html",
        f"talk to it: python jobs/serve.py --run {name}{storage}",
    ]
    return "\n".join(lines)
