"""Is this cluster fit for that run? Every check of the doctor, in order, and the verdict."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import tyro

from nanoray.cluster import connection
from nanoray.config import InputError
from nanoray.data.blocks import layout_for
from nanoray.data.feed import window_rows
from nanoray.model.scaling import flops_per_token, gpu_peak_flops, num_parameters
from nanoray.ops.doctor_checks import (
    check_between,
    check_disks,
    check_gpu_health,
    check_gpus,
    check_inside,
    check_nodes,
    check_object_store,
    check_speed,
    check_token,
    check_versions,
)
from nanoray.ops.doctor_cluster import (
    Answers,
    Questions,
    ask_nodes,
    living_nodes,
    measure,
    needs_token,
    probe_step,
)
from nanoray.ops.doctor_data import ExpectedData, TokenizerFacts, expect_data, look_at_tokenizer
from nanoray.ops.doctor_findings import Diagnosis, Finding, failed, ok, skipped
from nanoray.ops.doctor_links import slowest
from nanoray.ops.doctor_memory import estimate_bytes, expected_peak
from nanoray.ops.doctor_node import Node, NodeFacts, own_versions
from nanoray.ops.doctor_run_checks import (
    Saving,
    check_data,
    check_lone_step,
    check_memory,
    check_storage,
    check_tokenizer,
)
from nanoray.ops.doctor_storage import probe_folder
from nanoray.ops.plan import PlanConfig
from nanoray.stages.pretrain import open_stage, recipe_of
from nanoray.stages.pretrain_config import (
    PretrainConfig,
    check_rows,
    checkpoint_bytes,
    most_checkpoints,
    rows_per_step,
)
from nanoray.stages.stage_driver import most_waiting
from nanoray.stages.training_job import Recipe
from nanoray.storage import StageFolder, is_outage
from nanoray.train.save_interval import MOST_SECONDS

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Look for what would stop or slow down a run; the flags are those of jobs/pretrain.py."""

    pretrain: Annotated[PretrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=PretrainConfig
    )
    """The run that is meant."""
    quick: bool = False
    """Leave out what has to be measured: speed, all-reduce, memory."""
    json: bool = False
    """Print JSON only."""


@dataclass(frozen=True)
class MeantRun:
    """The run that is meant, as far as it can be decided before it starts."""

    config: PretrainConfig
    folder: StageFolder
    recipe: Recipe
    resources: connection.Resources | None = None
    """None where the workers find no room."""


def doctor(config: DoctorConfig) -> Diagnosis:
    """Connect to the cluster, or start a local one, and look at it.

    Raises:
        InputError: no cluster answers.
    """
    connection.connect()
    return diagnose(config.pretrain, quick=config.quick)


def diagnose(config: PretrainConfig, *, quick: bool = False) -> Diagnosis:
    """Look at the cluster that this process is connected to, and at a run that is meant for it.

    Args:
        config: of the run.
        quick: leave out what has to be measured.
    """
    storage = connection.absolute_address(config.storage or "runs")
    run, settings = settle(config, storage)
    return look(storage, run, [settings], quick=quick)


def look(
    storage: str, run: MeantRun | None, settings: list[Finding], *, quick: bool = False
) -> Diagnosis:
    """Look at nodes and storage, and at what a run asks of them if one is given.

    Args:
        storage: address of the runs.
        run: of pretraining, if that is meant.
        settings: what has been found of them.
        quick: leave out what has to be measured.
    """
    began = time.monotonic()
    nodes = living_nodes()
    logger.info("asking %d node(s) for versions, disks, storage and data", len(nodes))
    survey = look_around(nodes, storage, run)
    findings = [*findings_on_nodes(survey, run), *settings, *findings_on_run(survey, run)]
    if not quick:
        findings += measured_findings(survey, run)
    return Diagnosis(tuple(findings), len(nodes), time.monotonic() - began)


def attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Call what wrong input or storage that is away may stop; gives its result, or the reason."""
    try:
        return work(), None
    except Exception as error:
        if not isinstance(error, InputError) and not is_outage(error):
            raise
        return None, str(error) or type(error).__name__


def open_run(config: PretrainConfig, storage: str) -> MeantRun:
    """Decide a run's config together with the one it began with."""
    decided, folder = open_stage(config, storage)
    return MeantRun(decided, folder, recipe_of(decided))


def settle(config: PretrainConfig, storage: str) -> tuple[MeantRun | None, Finding]:
    """Decide the run as its own driver will; what does not work out is a finding."""
    opened, problem = attempt(lambda: open_run(config, storage))
    if opened is None:
        return None, failed("settings", str(problem), "")
    run = opened
    decided, folder, recipe = run.config, run.folder, run.recipe
    params = f"{num_parameters(recipe.model):,} parameters"
    try:
        run = dataclasses.replace(run, resources=connection.choose_resources(decided))
        assert run.resources, "just chosen"
        least, most = run.resources.num_workers
        check_rows(decided, rows_per_step(decided), most)
    except InputError as error:
        return run, failed("room", f"{error}", "")
    workers = f"{least}" if least == most else f"{least} to {most}"
    kind = "GPU" if run.resources.use_gpu else "CPU"
    each = f"{run.resources.cpus_per_worker:g} CPUs each"
    return run, ok("room", f"{folder}, {params}: room for {workers} worker(s) on {kind}, {each}")


@dataclass(frozen=True)
class Survey:
    """What was seen without measuring anything."""

    nodes: list[Node]
    storage: str
    spoke: dict[str, Answers]
    silent: dict[str, str]
    """Nodes that said nothing, and why."""
    expected: ExpectedData | None
    data_error: str | None
    storage_error: str | None

    @property
    def facts(self) -> dict[str, NodeFacts]:
        """Give what the nodes said of themselves."""
        return {name: answer.facts for name, answer in self.spoke.items()}

    @property
    def gpu(self) -> str | None:
        """Name the GPUs, those of the first node that has some."""
        having = [facts.gpus.gpus for facts in self.facts.values() if facts.gpus.gpus]
        return having[0][0].name if having else None


def look_around(nodes: list[Node], storage: str, run: MeantRun | None) -> Survey:
    """List the data on the driver, write into the storage, and ask all nodes."""
    expected, data_error = None, None
    if run is not None:
        meant = run
        expected, data_error = attempt(lambda: expect_data(meant.config, meant.folder, storage))
    storage_error = None
    try:
        with probe_folder(storage) as probe:
            answers = ask_nodes(nodes, Questions(probe, expected))
    except InputError as error:
        answers, storage_error = ask_nodes(nodes, Questions(None, expected)), str(error)
    return Survey(
        nodes,
        storage,
        {name: answer for name, answer in answers.items() if isinstance(answer, Answers)},
        {name: answer for name, answer in answers.items() if isinstance(answer, str)},
        expected,
        data_error,
        storage_error,
    )


def findings_on_nodes(survey: Survey, run: MeantRun | None) -> list[Finding]:
    """Say what the machines are like."""
    facts = survey.facts
    findings = [check_nodes(survey.nodes, survey.silent)]
    if not facts:
        return findings
    return [
        *findings,
        check_versions(own_versions(with_nccl=False), facts),
        check_token(needs_token()),
        check_gpus(survey.nodes, facts),
        check_gpu_health(facts),
        check_disks(facts),
        check_object_store(survey.nodes, facts, stream_bytes(run)),
    ]


def findings_on_run(survey: Survey, run: MeantRun | None) -> list[Finding]:
    """Say what storage, data and tokenizer of the run are like."""
    storages = {name: a.storage for name, a in survey.spoke.items() if a.storage}
    shards = {name: answer.data for name, answer in survey.spoke.items() if answer.data}
    findings = check_storage(
        survey.storage, storages, saving_of(run, survey.gpu), survey.storage_error
    )
    if run is None:
        return findings
    assert run.config.vocab_size, "decided"
    tokenizers, error = attempt(lambda: look_at_tokenizer(run.config, run.folder))
    return [
        *findings,
        check_data(survey.expected, shards, survey.data_error),
        check_tokenizer(tokenizers or TokenizerFacts(error=error), run.config.vocab_size),
    ]


def measured_findings(survey: Survey, run: MeantRun | None) -> list[Finding]:
    """Measure speed and network on all nodes, and make one step on one of them."""
    nodes = [node for node in survey.nodes if node.name in survey.spoke]
    logger.info("measuring speed and all-reduce")
    speeds = measure(nodes)
    gpu = survey.gpu
    findings = [check_speed(speeds.flops, gpu)]
    if speeds.problem is None:
        # A head without GPUs has no ports of the fabric.
        links = slowest(survey.facts[node.name].links for node in nodes if node.num_gpus)
        findings += [
            check_inside(speeds.inside, gpu),
            check_between(speeds.between, gpu, links),
        ]
    elif speeds.is_busy:
        return [skipped("speed, all-reduce, memory", f"{speeds.problem}: not measured")]
    else:
        findings.append(
            failed(
                "all-reduce",
                speeds.problem,
                "If workers did not start: see whether CUDA answers there (nvidia-smi), or leave "
                "the node out. If they did not meet: let nodes reach each other on all ports, and "
                "see GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME.",
            )
        )
    if run is not None and run.resources is not None:
        findings.append(memory_finding(nodes, run, run.resources))
    return findings


def memory_finding(nodes: list[Node], run: MeantRun, resources: connection.Resources) -> Finding:
    """Make one step of the real model at the real batch on one node that trains."""
    fitting = [n for n in nodes if (n.num_gpus if resources.use_gpu else n.trains)]
    if not fitting:
        return skipped("memory", "no node for workers is there yet")
    size = run.recipe.device_batch_size
    logger.info("making one step of %d rows on %s", size, fitting[0].name)
    step = probe_step(
        fitting[0], run.recipe, eager=run.config.eager, threads=resources.threads_per_worker
    )
    workers = resources.num_workers[1]
    if step is None or isinstance(step, str):
        return check_memory(step, estimate_bytes(run.recipe, size, workers), 1)
    sharing = 1 if resources.use_gpu else math.ceil(workers / len(fitting))
    if not step.fits:
        alone, *each = (
            estimate_bytes(run.recipe, size, count, on_gpu=resources.use_gpu)
            for count in (1, *resources.num_workers)
        )
        return check_lone_step(step, alone, sharing * max(each))
    expected = expected_peak(step.peak_bytes, run.recipe, size, workers)
    return check_memory(step, expected, sharing)


def stream_bytes(run: MeantRun | None) -> float | None:
    """Say what the rows under way take in the object stores: twice, because blocks are cut."""
    if run is None or run.resources is None:
        return None
    most = run.resources.num_workers[1]
    layout = layout_for(rows_per_step(run.config), run.recipe.device_batch_size, most)
    row = 4 * (run.recipe.model.max_seq_len + 1) + 24
    return 2.0 * row * window_rows(layout, most)


def saving_of(run: MeantRun | None, gpu: str | None) -> Saving | None:
    """Say how much the run writes, and how often."""
    if run is None:
        return None
    config, model = run.config, run.recipe.model
    waiting = most_waiting(run.recipe, run.resources) if run.resources else 0
    return Saving(
        checkpoint_bytes=checkpoint_bytes(model),
        weights_bytes=4 * num_parameters(model),
        num_kept=most_checkpoints(config, run.recipe.schedule.num_steps, waiting),
        interval_seconds=save_interval(run, gpu),
    )


def save_interval(run: MeantRun, gpu: str | None) -> float | None:
    """Estimate the seconds between two checkpoints, None where nobody knows how long a step is.

    Left to itself a run saves once an hour or more often, as its storage lets it.
    """
    config, recipe = run.config, run.recipe
    asked = [] if config.save_every_minutes is None else [60 * config.save_every_minutes]
    if config.save_every is not None:
        peak = gpu_peak_flops(gpu, recipe.dtype) if gpu else None
        if peak is None or run.resources is None:
            return asked[0] if asked else None
        workers = run.resources.num_workers[1]
        flops = rows_per_step(config) * recipe.model.max_seq_len * flops_per_token(recipe.model)
        asked.append(config.save_every * flops / (PlanConfig.mfu * peak * workers))
    return min(asked, default=MOST_SECONDS)
