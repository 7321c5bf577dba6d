"""Reinforcement learning as one function: ask, grade, and learn from what was right."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Literal

from nanoray.cluster import connection
from nanoray.cluster.placement import for_computing
from nanoray.config import InputError, to_json
from nanoray.data.blocks import Layout
from nanoray.data.feed import start_pacer
from nanoray.model.gpt import GPTConfig
from nanoray.rl.rollout_workers import RolloutCrew
from nanoray.rl.source import RolloutSource
from nanoray.rl.steps import QuestionPlan
from nanoray.stages.rl_config import RLConfig, decide, recipe_of, with_length
from nanoray.stages.rl_feed import RolloutFeed
from nanoray.stages.rl_summary import finish
from nanoray.stages.stage_driver import (
    Examine,
    check_space,
    default_dtype,
    describe_workers,
    move_aside,
    on_gpu,
    run_stage,
)
from nanoray.stages.start import find_tokenizer, hub_fingerprints, keep_start, open_later_stage
from nanoray.stages.training_job import TrainingJob
from nanoray.task import ChosenTask, JoinedTask, Task
from nanoray.text.chat import render_for_completion
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import save_tokenizer
from nanoray.train.checkpoint_name import SavedModel

logger = logging.getLogger(__name__)

STAGE = "rl"
SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")
LEAST_ANSWER_TOKENS = 16
"""Room that a question must leave in the context."""

MakeTask = Callable[[RLConfig, str, Literal["train", "test"]], Task]
"""Gives a task by its name: its questions to learn from, or those that are held out."""


def reinforce(config: RLConfig, make_task: MakeTask, examine: Examine | None = None) -> str:
    """Run the RL stage, or go on where an earlier start of it stopped.

    Args:
        config: what the user gave.
        make_task: where questions and grades come from.
        examine: looks at the cluster before anything is written.

    Returns:
        What the user is told at the end.

    Raises:
        InputError: something the user gave does not work out.
    """
    storage = connection.absolute_address(config.storage or "runs")
    began = time.time()
    connection.connect()
    job = prepare(config, storage, make_task, examine)
    return run_stage(job, None, finish, began=began)


def prepare(
    config: RLConfig, storage: str, make_task: MakeTask, examine: Examine | None = None
) -> TrainingJob:
    """Decide and check everything, and open the stage."""
    config, opened = open_later_stage(STAGE, config, storage)
    folder, start = opened.folder, opened.start
    model, tokenizer = start.config(), find_tokenizer(folder.run, start)
    config = decide(config, model, on_gpu=on_gpu(), dtype=default_dtype())
    names = [name.strip() for name in config.tasks.split(",")]
    joined = [JoinedTask([make_task(config, name, split) for name in names]) for split in SPLITS]
    opened.facts["hub"] = hub_fingerprints([t for j in joined for t in j.tasks], config.hub_dir)
    task = within_context(joined[0], tokenizer, model)
    held_out = within_context(joined[1].in_turn(), tokenizer, model)
    config = with_length(config, len(task))
    recipe = recipe_of(config, start)
    resources = connection.choose_resources(
        config, most_workers=config.examples_per_step, beside=config.rollout_workers
    )
    check_groups(config, resources.num_workers[1])
    if examine:
        examine(config, folder, resources)
    crew = choose_crew(config, resources)
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
        questions_hash=hash_of(task),
        crew=crew,
        max_staleness=config.max_staleness,
        num_held_out=min(config.validation_questions, len(held_out)),
        device_batch_size=recipe.device_batch_size,
    )
    check_space(config, recipe, folder, resources)
    if config.fresh:
        move_aside(folder)
    save_tokenizer(tokenizer, folder.run.tokenizer_address)
    keep_start(opened)
    folder.write_config(to_json(config))
    pacer = start_pacer(Layout(1, 1), resources.num_workers[1], 1)
    job = TrainingJob(STAGE, config, recipe, storage, feed, resources, pacer)
    describe(job, config, start, feed)
    return job


def within_context(task: Task, tokenizer: Tokenizer, model: GPTConfig) -> Task:
    """Leave out the questions that leave no room for an answer, and say how many there are.

    Raises:
        InputError: that are all.
    """
    most = model.max_seq_len - LEAST_ANSWER_TOKENS
    kept = [
        index
        for index in range(len(task))
        if len(render_for_completion(task.example(index).messages, tokenizer, most + 1)) <= most
    ]
    if not kept:
        raise InputError(
            f"No question of {task.name} leaves room for an answer in the {model.max_seq_len} "
            "tokens of the model. Name other --tasks."
        )
    if len(kept) == len(task):
        return task
    logger.warning("%s: left out %d questions that are too long", task.name, len(task) - len(kept))
    return ChosenTask(task, kept)


def hash_of(task: Task) -> str:
    """Hash all questions with their answers."""
    digest = hashlib.sha256(task.name.encode())
    for index in range(len(task)):
        digest.update(json.dumps(list(task.example(index).messages)).encode())
    return digest.hexdigest()


def check_groups(config: RLConfig, most_workers: int) -> None:
    """Raise an InputError if there are more trainers than questions in a step."""
    if most_workers > config.examples_per_step:
        raise InputError(
            f"--num-workers {config.num_workers or most_workers} is more than the "
            f"{config.examples_per_step} questions of a step. Give at most that many, or a larger "
            "--examples-per-step."
        )


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
        # Well before the group is taken for hung.
        answer_seconds=max(1.0, config.hang_seconds / 2),
        labels=for_computing(),
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
