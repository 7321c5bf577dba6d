"""Reinforcement learning as one function: ask, grade, and learn from what was right."""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Literal

from nanoray.cluster import connection
from nanoray.config import InputError, to_json
from nanoray.data.blocks import Layout
from nanoray.data.feed import start_pacer
from nanoray.rl.rollout_workers import RolloutCrew
from nanoray.rl.source import RolloutSource
from nanoray.rl.steps import QuestionPlan
from nanoray.stages.finetune import find_tokenizer, stage_before
from nanoray.stages.rl_config import RLConfig, decide, recipe_of, with_length
from nanoray.stages.rl_feed import RolloutFeed
from nanoray.stages.rl_summary import finish
from nanoray.stages.stage_driver import (
    begun_config,
    check_space,
    default_dtype,
    describe_workers,
    move_aside,
    on_gpu,
    run_stage,
)
from nanoray.stages.training_job import TrainingJob
from nanoray.storage import RunFolder, StageFolder
from nanoray.task import JoinedTask, Task
from nanoray.text.tokenizer_file import save_tokenizer
from nanoray.train.checkpoint_name import SavedModel, find_model

logger = logging.getLogger(__name__)

STAGE = "rl"

MakeTask = Callable[[RLConfig, str, Literal["train", "test"]], Task]
"""Gives a task by its name: its questions to learn from, or those that are held out."""


def reinforce(config: RLConfig, make_task: MakeTask) -> str:
    """Run the RL stage, or go on where an earlier start of it stopped.

    Args:
        config: what the user gave.
        make_task: where questions and grades come from.

    Returns:
        What the user is told at the end.

    Raises:
        InputError: something the user gave does not work out.
    """
    storage = connection.absolute_address(config.storage or "runs")
    began = time.time()
    connection.connect()
    job = prepare(config, storage, make_task)
    return run_stage(job, None, finish, began=began)


def prepare(config: RLConfig, storage: str, make_task: MakeTask) -> TrainingJob:
    """Decide and check everything, and open the stage."""
    config, folder, start = open_stage(config, storage)
    names = [name.strip() for name in config.tasks.split(",")]
    task = JoinedTask([make_task(config, name, "train") for name in names])
    held_out = JoinedTask([make_task(config, name, "test") for name in names])
    config = with_length(config, len(task))
    recipe = recipe_of(config, start)
    resources = connection.choose_resources(config)
    most_workers = resources.num_workers[1]
    if most_workers > config.examples_per_step:
        raise InputError(
            f"--num-workers {config.num_workers or most_workers} is more than the "
            f"{config.examples_per_step} questions of a step. Give at most that many, or a larger "
            "--examples-per-step."
        )
    check_space(config, recipe, folder, resources)
    tokenizer = find_tokenizer(folder.run, start)
    if config.fresh:
        move_aside(folder)
    save_tokenizer(tokenizer, folder.run.tokenizer_address)
    folder.write_config(to_json(config))
    assert config.run, "decided"
    assert config.dtype, "decided"
    feed = RolloutFeed(
        storage=storage,
        run=config.run,
        stage=STAGE,
        source=RolloutSource(
            model=recipe.model,
            compute_dtype=config.dtype,
            tokenizer=tokenizer.to_json(),
            task=task,
            rollout=config.rollout(is_held_out=False),
            engine=config.engine(recipe.model),
            held_out=(held_out, config.rollout(is_held_out=True)),
        ),
        plan=QuestionPlan(len(task), config.seed, config.examples_per_step),
        crew=choose_crew(config, resources),
        max_staleness=config.max_staleness,
        num_held_out=min(config.validation_questions, len(held_out)),
    )
    pacer = start_pacer(Layout(1, 1), most_workers, 1)
    job = TrainingJob(STAGE, config, recipe, storage, feed, resources, pacer)
    describe(job, config, start, feed)
    return job


def open_stage(config: RLConfig, storage: str) -> tuple[RLConfig, StageFolder, SavedModel]:
    """Find the stage's folder and where it starts from, and decide its config."""
    if config.run is None and config.from_ is None:
        raise InputError(
            "--run is missing: name the run to go on with, or give another one and --from."
        )
    name = config.run or str(config.from_).partition("/")[0].partition("@")[0]
    folder = RunFolder(storage, name).stage(STAGE)
    if config.from_ is None:
        saved = None if config.fresh else folder.read_config()
        source = saved["from_"] if saved else stage_before(folder)
    else:
        source = find_model(storage, config.from_).name
    start = find_model(storage, source)
    config = dataclasses.replace(config, run=name, from_=source)
    config = begun_config(config, folder) or config
    gpu = on_gpu()
    return decide(config, start.config(), on_gpu=gpu, dtype=default_dtype()), folder, start


def choose_crew(config: RLConfig, resources: connection.Resources) -> RolloutCrew | None:
    """Share the rollout workers out among the trainers; None where there are none.

    Raises:
        InputError: they do not fit the cluster, or leave a trainer without one.
    """
    if not config.rollout_workers:
        return None
    trainers = resources.num_workers[1]
    if config.rollout_workers % trainers:
        raise InputError(
            f"--rollout-workers {config.rollout_workers} cannot be shared out among {trainers} "
            f"trainers. Give a multiple of {trainers}."
        )
    gpus = int(connection.cluster_total()["GPU"])
    if resources.use_gpu and config.rollout_workers + trainers > gpus:
        raise InputError(
            f"--rollout-workers {config.rollout_workers} beside {trainers} trainers need "
            f"{config.rollout_workers + trainers} GPUs, and the cluster has {gpus}. Give fewer, a "
            "smaller --num-workers, or 0 to let the trainers draw."
        )
    return RolloutCrew(
        num_workers=config.rollout_workers // trainers,
        cpus_each=1.0 if resources.use_gpu else 0.0,
        gpus_each=1.0 if resources.use_gpu else 0.0,
        threads=4 if resources.use_gpu else 1,
    )


def describe(job: TrainingJob, config: RLConfig, start: SavedModel, feed: RolloutFeed) -> None:
    """Tell the user what is asked, before anything starts."""
    logger.info("%s goes on from %s", job.folder, start.name)
    logger.info(
        "%s: %s questions, %d answers to each of %d in a step, of at most %d tokens; %s steps",
        feed.source.task.name,
        f"{feed.plan.num_questions:,}",
        config.num_samples,
        config.examples_per_step,
        config.max_new_tokens,
        f"{job.num_steps:,}",
    )
    drawn = (
        "the trainers draw the answers"
        if feed.crew is None
        else f"{config.rollout_workers} rollout worker(s), at most {config.max_staleness} steps old"
    )
    logger.info("%s; pass@k over %d held-out questions", drawn, feed.num_held_out)
    describe_workers(job)
