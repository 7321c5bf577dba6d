"""Checkpoints of a run that trains, evaluated as they are saved, with what training leaves over.

Training never waits for an evaluation and never ends with one: it runs in a thread of the driver,
by actors of their own, and what goes wrong with it is logged. On GPUs only those count that no
worker could want; on CPUs the actor gives way to everybody.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from evals.evaluate import find_checkpoint, measure
from evals.exam_plan import ExamConfig, ExamPlan, plan_exams
from evals.results import EvalReport
from evals.run import Crew, DisplacedError, choose_crew
from evals.saved_results import read_reports
from nanoray.cluster import connection
from nanoray.config import InputError, to_json
from nanoray.metrics import add_to_steps, read_metrics
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.training_job import TrainingJob
from nanoray.storage import with_patience
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.checkpoint_name import SavedModel
from nanoray.wandb_run import start_wandb

logger = logging.getLogger(__name__)

MEANS = {"core": "CORE", "chat": "ChatCORE"}
LOOK_SECONDS = 5.0
PAUSES_SECONDS = (5.0, 60.0, 600.0)
"""Before a step is tried again; what also fails then is left out."""
LOWEST_PRIORITY = 19


class CheckpointEvaluations:
    """Evaluates the checkpoints whose steps a stage asks for."""

    plan: ExamPlan

    def check(self, config: PretrainConfig | FinetuneConfig) -> None:
        """Read the questions.

        Raises:
            InputError: they are not there.
        """
        exams = exams_during(config)
        if exams is not None:
            self.plan = plan_exams(exams)

    @contextlib.contextmanager
    def watch(self, job: TrainingJob) -> Iterator[None]:
        """Evaluate what is saved while the context is open.

        Where it is closed well, the rest is evaluated too, and all results are added to their steps
        in metrics.jsonl. Where it fails, the rest is left to the next start of the run.
        """
        if job.recipe.evaluate_every is None:
            yield
            return
        watch = CheckpointWatch(job, self.plan)
        if watch.crew() is None:
            logger.info("no GPU is left beside training; saved steps are evaluated after it")
        watch.start()
        try:
            yield
        except BaseException:
            watch.is_over.set()
            raise
        patience, place = job.config.storage_patience_seconds, str(job.folder)
        with_patience(watch.finish, patience, place)
        with_patience(lambda: record(job, self.plan), patience, place)


def exams_during(config: PretrainConfig | FinetuneConfig) -> ExamConfig | None:
    """Say what is asked of the checkpoints of a stage; None for nothing."""
    if isinstance(config, PretrainConfig):
        most = config.core_max_per_task
        asked = ExamConfig(eval_bundle=config.eval_bundle, max_per_task=most)
        return None if config.core_every is None else asked
    asked = ExamConfig(
        tasks=config.eval_tasks,
        eval_bundle=config.eval_bundle,
        hub_dir=config.hub_dir,
        words=config.words,
        identity_file=config.identity_file,
        max_per_task=config.eval_max_per_task,
    )
    return None if config.eval_every is None else asked


class CheckpointWatch:
    """The thread that looks for new checkpoints and has them evaluated."""

    def __init__(self, job: TrainingJob, plan: ExamPlan) -> None:
        self.job, self.plan = job, plan
        self.training_ended, self.is_over = threading.Event(), threading.Event()
        self.failures: dict[int, int] = {}
        self.not_before: dict[int, float] = {}
        """When a step that has failed may be tried again."""
        self.thread = threading.Thread(target=self._run, name="evaluations", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self.thread.start()

    def finish(self) -> None:
        """Wait until every checkpoint that is there was evaluated, or left out."""
        waiting = self.waiting()
        if waiting:
            logger.info("training has ended; %d checkpoint(s) are still evaluated", len(waiting))
        self.training_ended.set()
        self.thread.join()

    def waiting(self) -> list[int]:
        """List the saved steps that are to be evaluated; the last one of a run is one of them."""
        folder, every = self.job.folder, self.job.recipe.evaluate_every
        assert every is not None, "the config asks for evaluations"
        due = [
            step
            for step in committed_steps(folder)
            if step % every == 0 or step == self.job.num_steps
        ]
        return [step for step in due if not SavedModel(folder, step).is_evaluated()]

    def crew(self) -> Crew | None:
        """Give the actors that would disturb nobody; None while there are none."""
        if self.training_ended.is_set():
            return choose_crew(None)
        resources = self.job.resources
        if resources.use_gpu:
            # Those that are there: an autoscaler adds nodes for training, not for this.
            spare = connection.gpus_present() - resources.num_workers[1]
            if spare < 1:
                return None
            return Crew(spare, gpus_each=1, cpus_each=0, threads=1, niceness=LOWEST_PRIORITY)
        threads = max(1, (os.cpu_count() or 1) // 4)
        return Crew(1, gpus_each=0, cpus_each=0, threads=threads, niceness=LOWEST_PRIORITY)

    def _run(self) -> None:
        """Evaluate one checkpoint after the other, until training has ended and none is left."""
        while not self.is_over.is_set():
            ending = self.training_ended.is_set()
            try:
                waiting, crew = self.waiting(), self.crew()
            except Exception as error:  # whatever it is, training goes on
                logger.warning("saved steps could not be listed: %s", error)
                self.is_over.wait(LOOK_SECONDS)
                continue
            now = time.monotonic()
            possible = [step for step in waiting if self.not_before.get(step, 0) <= now]
            if possible and crew:
                self._evaluate(possible[0], crew)
            elif ending and not [s for s in waiting if self.not_before.get(s) != math.inf]:
                return
            else:
                self._pause()

    def _pause(self) -> None:
        """Wait for a while, but not for longer than training goes on."""
        ended = self.training_ended
        (self.is_over if ended.is_set() else ended).wait(LOOK_SECONDS)

    def _may_go_on(self, crew: Crew) -> bool:
        """Say whether nobody else needs what the actors have."""
        if self.is_over.is_set():
            return False
        now = self.crew()
        return now is not None and now.num_actors >= crew.num_actors

    def _evaluate(self, step: int, crew: Crew) -> None:
        """Evaluate one step; what fails again and again is left out."""
        folder = self.job.folder
        try:
            dtype = "bfloat16" if crew.gpus_each else "float32"
            name = f"{folder.run.run}/{folder.name}@{step}"
            subject = find_checkpoint(self.job.storage, name)
            may_go_on = partial(self._may_go_on, crew)
            report = measure(subject, self.plan, dtype, crew, may_go_on=may_go_on)
            SavedModel(folder, step).mark_evaluated()
            logger.info("%s", headline(step, report))
        except DisplacedError:
            logger.info("the evaluation of step %d gave way", step)
        except Exception as error:  # whatever it is, training goes on
            self._put_off(step, error)

    def _put_off(self, step: int, error: Exception) -> None:
        """Try a step again later, unless it has failed too often, or can never do better."""
        failures = self.failures[step] = self.failures.get(step, 0) + 1
        again = failures <= len(PAUSES_SECONDS) and not isinstance(error, InputError)
        if again:
            pause = PAUSES_SECONDS[failures - 1]
            self.not_before[step] = time.monotonic() + pause
            then = f"it is tried again in {pause:.0f} s"
        else:
            then = "it is left out"
        logger.warning("step %d could not be evaluated, %s: %s", step, then, error)
        if not again:
            with contextlib.suppress(Exception):  # then it is tried at the next start
                SavedModel(self.job.folder, step).mark_evaluated()
            self.not_before[step] = math.inf


def headline(step: int, report: EvalReport) -> str:
    """Say in one line what came out."""
    told = []
    for group, name in MEANS.items():
        mean = report.mean(group)
        if mean is not None:
            low, high = mean.interval
            told.append(f"{name} {mean.value:.4f} ({low:.4f} - {high:.4f})")
    told = told or [f"{task.name} {task.accuracy:.4f}" for task in report.tasks]
    return f"step {step}: {', '.join(told)}"


def record(job: TrainingJob, plan: ExamPlan) -> None:
    """Add results to metrics.jsonl, at their steps, and what is new of them to wandb too.

    Only those count that were asked and measured as this run asks for, of the weights that are
    there.
    """
    folder = job.folder
    path = folder.path("metrics.jsonl")
    weights = {step: SavedModel(folder, step).weights_hash() for step in committed_steps(folder)}
    wanted = {(exam.name, exam.fingerprint, exam.sandbox) for exam in plan.exams}
    values = {
        report.step: metrics_of(report)
        for report in read_reports(folder)
        if report.step is not None
        and report.weights == weights.get(report.step, report.weights)
        and plan.settings.items() <= report.settings.items()
        and {(t.name, t.questions, t.sandbox) for t in report.tasks} >= wanted
    }
    own = f"eval/{plan.names[0]}"
    before = {r["step"] for r in read_metrics(folder.fs, path) if own in r}
    add_to_steps(folder.fs, path, values)
    fresh = {step: found for step, found in values.items() if step not in before}
    if job.config.wandb_project and fresh:
        run = start_wandb(
            job.config.wandb_project, folder, to_json(job.config), job.config.wandb_group
        )
        for step, found in fresh.items():
            run.log({"eval/step": step, **found})
        run.finish()


def metrics_of(report: EvalReport) -> dict[str, Any]:  # Any: JSON
    """Give the results of a report under the names of metrics."""
    found: dict[str, Any] = {f"eval/{task.name}": task.accuracy for task in report.tasks}
    for group, name in MEANS.items():
        mean = report.mean(group)
        if mean is not None:
            low, high = mean.interval
            own = f"eval/{name.lower()}"
            found |= {own: mean.value, f"{own}_low": low, f"{own}_high": high}
    return found
