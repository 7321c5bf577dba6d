"""Checkpoints of a run that trains, evaluated as they are saved, with what training leaves over.

Training never waits for an evaluation and never ends with one: it runs in a thread of the driver,
by actors of their own, and what goes wrong with it is logged. On GPUs only those count that no
worker could want; on CPUs the actor gives way to everybody.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

from evals.evaluate import find_subject, measure, read_reports
from evals.exam_plan import ExamConfig, ExamPlan, plan_exams
from evals.results import EvalReport
from evals.run import Crew, choose_crew
from nanoray.cluster import connection
from nanoray.config import to_json
from nanoray.metrics import add_to_steps, start_wandb
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.pretrain_worker import PretrainJob
from nanoray.train.checkpoint_files import committed_steps

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
BATCH_SIZE = 32
MOST_TRIES = 3
LOWEST_PRIORITY = 19


class CoreEvaluations:
    """Evaluates CORE of each checkpoint whose step is a multiple of `core_every`."""

    plan: ExamPlan

    def check(self, config: PretrainConfig) -> None:
        """Read the questions.

        Raises:
            InputError: the bundle is not there.
        """
        if config.core_every is not None:
            most = config.core_max_per_task
            self.plan = plan_exams(ExamConfig(eval_bundle=config.eval_bundle, max_per_task=most))

    @contextlib.contextmanager
    def watch(self, job: PretrainJob) -> Iterator[None]:
        """Evaluate what is saved while the context is open.

        Where it is closed well, the rest is evaluated too, and all results are added to their steps
        in metrics.jsonl. Where it fails, the rest is left to the next start of the run.
        """
        if job.config.core_every is None:
            yield
            return
        watch = CheckpointWatch(job, self.plan)
        watch.start()
        try:
            yield
        except BaseException:
            watch.is_over.set()
            raise
        watch.finish()
        record(job)


class CheckpointWatch:
    """The thread that looks for new checkpoints and has them evaluated."""

    def __init__(self, job: PretrainJob, plan: ExamPlan) -> None:
        self.job, self.plan = job, plan
        self.training_ended, self.is_over = threading.Event(), threading.Event()
        self.tries: dict[int, int] = {}
        self.thread = threading.Thread(target=self._run, name="evaluations", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self.thread.start()

    def finish(self) -> None:
        """Wait until every checkpoint that is there was evaluated."""
        self.training_ended.set()
        waiting = self.waiting()
        if waiting:
            logger.info("training has ended; %d checkpoint(s) are still evaluated", len(waiting))
        self.thread.join()

    def waiting(self) -> list[int]:
        """List the saved steps that are to be evaluated."""
        folder, every = self.job.folder, self.job.config.core_every
        assert every is not None, "the config asks for evaluations"
        due = [step for step in committed_steps(folder) if step % every == 0]
        return [step for step in due if not folder.is_evaluated(step)]

    def crew(self) -> Crew | None:
        """Give the actors that would disturb nobody; None while there are none."""
        if self.training_ended.is_set():
            return choose_crew(None)
        resources = self.job.resources
        if resources.use_gpu:
            spare = int(connection.cluster_total()["GPU"]) - resources.num_workers[1]
            return Crew(spare, gpus_each=1, cpus_each=1, threads=4) if spare > 0 else None
        threads = max(1, (os.cpu_count() or 1) // 4)
        return Crew(1, gpus_each=0, cpus_each=0, threads=threads, niceness=LOWEST_PRIORITY)

    def _run(self) -> None:
        """Evaluate one checkpoint after the other, until training has ended and none is left."""
        while not self.is_over.is_set():
            ending = self.training_ended.is_set()
            try:
                waiting, crew = self.waiting(), self.crew()
                if waiting and crew:
                    self._evaluate(waiting[0], crew)
                    continue
            except Exception as error:  # whatever it is, training goes on
                logger.warning("saved steps could not be listed: %s", error)
            if ending:
                return
            self.training_ended.wait(LOOK_SECONDS)

    def _evaluate(self, step: int, crew: Crew) -> None:
        """Evaluate one step; what fails again and again is given up."""
        folder = self.job.folder
        try:
            dtype = "bfloat16" if crew.gpus_each else "float32"
            subject = find_subject(
                self.job.storage, f"{folder.run.run}/{folder.name}@{step}", dtype
            )
            report = measure(subject, self.plan, dtype, crew, BATCH_SIZE)
            folder.mark_evaluated(step)
            logger.info("%s", headline(step, report))
        except Exception as error:  # whatever it is, training goes on
            self.tries[step] = self.tries.get(step, 0) + 1
            again = self.tries[step] < MOST_TRIES
            logger.warning(
                "step %d could not be evaluated (%s, %d of %d tries)%s",
                *(step, error, self.tries[step], MOST_TRIES, "" if again else "; it is left out"),
            )
            if not again:
                folder.mark_evaluated(step)


def headline(step: int, report: EvalReport) -> str:
    """Say in one line what came out."""
    mean = report.mean("core")
    if mean is None:
        return f"step {step}: {len(report.tasks)} tasks"
    low, high = mean.interval
    return f"step {step}: CORE {mean.value:.4f} ({low:.4f} - {high:.4f})"


def record(job: PretrainJob) -> None:
    """Add all results to metrics.jsonl, at their steps, and to Weights & Biases."""
    folder = job.folder
    values = {report.step: flat(report) for report in read_reports(folder) if report.step}
    add_to_steps(folder.fs, folder.path("metrics.jsonl"), values)
    if job.config.wandb_project and values:
        run = start_wandb(job.config.wandb_project, folder, to_json(job.config))
        for step, found in values.items():
            run.log({"eval/step": step, **found})
        run.finish()


def flat(report: EvalReport) -> dict[str, Any]:  # Any: JSON
    """Give the results of a report under the names of metrics."""
    found: dict[str, Any] = {f"eval/{task.name}": task.accuracy for task in report.tasks}
    mean = report.mean("core")
    if mean is not None:
        low, high = mean.interval
        found |= {"eval/core": mean.value, "eval/core_low": low, "eval/core_high": high}
    return found
