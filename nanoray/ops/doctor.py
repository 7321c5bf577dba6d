"""Is this cluster fit for that run? Every check of the doctor, in order, and the verdict."""

import dataclasses
import logging
import math
import time
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from nanoray.cluster import connection
from nanoray.cluster.head import ClusterError, TokenError, VersionError
from nanoray.config import InputError
from nanoray.data.datasets import DATASETS
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
from nanoray.ops.doctor_data import ExpectedData, TokenizerFacts, look_at_tokenizer
from nanoray.ops.doctor_findings import Diagnosis, Finding, failed, failed_with, skipped
from nanoray.ops.doctor_links import slowest
from nanoray.ops.doctor_memory import estimate_bytes, expected_peak
from nanoray.ops.doctor_node import Node, NodeFacts, own_versions
from nanoray.ops.doctor_run import (
    MeantRun,
    any_room,
    attempt,
    is_of_storage,
    list_data,
    room_finding,
    saving_of,
    settings_findings,
    settle,
    stream_bytes,
)
from nanoray.ops.doctor_run_checks import (
    check_data,
    check_lone_step,
    check_memory,
    check_storage,
    check_tokenizer,
)
from nanoray.ops.doctor_storage import probe_folder
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.training_job import Recipe

logger = logging.getLogger(__name__)

UNDECIDED = "the run's settings do not work out"
CHECKS_OF_NODES = ("nodes", "versions", "token", "GPUs", "GPU health", "disk", "object store")
CHECKS_OF_RUN = ("settings", "room", "storage", "storage space", "data", "tokenizer")
MEASURED_CHECKS = ("speed", "all-reduce", "memory")
"""By their names in a report."""


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


def doctor(config: DoctorConfig) -> Diagnosis:
    """Connect to the cluster, or start a local one, and look at it."""
    began = time.monotonic()
    try:
        connection.connect()
    except ClusterError as error:
        return no_cluster(error, time.monotonic() - began, quick=config.quick)
    return diagnose(config.pretrain, quick=config.quick)


def no_cluster(error: ClusterError, seconds: float, *, quick: bool) -> Diagnosis:
    """Say why the cluster cannot be looked at, and nothing on it."""
    check = {TokenError: "token", VersionError: "versions"}.get(type(error), "cluster")
    checks = [*CHECKS_OF_NODES, *CHECKS_OF_RUN, *([] if quick else MEASURED_CHECKS)]
    others = [skipped(name, "no cluster to look at") for name in checks if name != check]
    remedy = "Start Ray with ray start --head, then try again."
    return Diagnosis((failed_with(check, error, remedy), *others), 0, seconds)


def diagnose(config: PretrainConfig, *, quick: bool = False) -> Diagnosis:
    """Look at the cluster that this process is connected to, and at a run that is meant for it.

    Args:
        config: of the run.
        quick: leave out what has to be measured.
    """
    storage = connection.absolute_address(config.storage or "runs")
    return look(storage, settle(config, storage), quick=quick)


def look(storage: str, run: MeantRun | None, *, quick: bool = False) -> Diagnosis:
    """Look at nodes and storage, and at what a run asks of them if one is given.

    Args:
        storage: address of the runs.
        run: of pretraining, if that is meant.
        quick: leave out what has to be measured.
    """
    began = time.monotonic()
    nodes = living_nodes()
    logger.info("asking %d node(s) for versions, disks, storage and data", len(nodes))
    survey = look_around(nodes, storage, run)
    findings = [*findings_on_nodes(survey, run), *findings_on_run(survey, run)]
    if not quick:
        findings += measured_findings(survey, run)
    return Diagnosis(tuple(findings), len(nodes), time.monotonic() - began)


@dataclass(frozen=True)
class Survey:
    """What was seen without measuring anything."""

    nodes: list[Node]
    storage: str
    spoke: dict[str, Answers]
    silent: dict[str, str]
    """Nodes that said nothing, and why."""
    expected: ExpectedData | None
    data_error: Exception | None
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
        expected, data_error = attempt(lambda: list_data(meant, storage))
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
    nodes, token = check_nodes(survey.nodes, survey.silent), check_token(needs_token())
    if not facts:
        unknown = [name for name in CHECKS_OF_NODES if name not in (nodes.check, token.check)]
        return [nodes, token, *(skipped(name, "no node answered") for name in unknown)]
    return [
        nodes,
        check_versions(own_versions(with_nccl=False), facts),
        token,
        check_gpus(survey.nodes, facts),
        check_gpu_health(facts),
        check_disks(facts),
        check_object_store(survey.nodes, facts, stream_bytes(run)),
    ]


def findings_on_run(survey: Survey, run: MeantRun | None) -> list[Finding]:
    """Say what settings, storage, data and tokenizer of the run are like."""
    storages = {name: a.storage for name, a in survey.spoke.items() if a.storage}
    findings = check_storage(
        survey.storage, storages, saving_of(run, survey.gpu), survey.storage_error
    )
    if run is None:
        return findings
    is_away = survey.storage_error is not None
    if is_away or any(seen.error or not seen.is_visible for seen in storages.values()):
        findings.append(skipped("storage space", "the storage has failed"))
    elif run.recipe is None:
        findings.append(skipped("storage space", UNDECIDED))
    return [
        *settings_findings(run, storage_is_away=is_away),
        room_finding(run),
        *findings,
        data_finding(survey, run),
        tokenizer_finding(run, storage_is_away=is_away),
    ]


def text_of(error: Exception | None) -> str | None:
    """Give what an error says, or at least its type."""
    return None if error is None else str(error) or type(error).__name__


def data_finding(survey: Survey, run: MeantRun) -> Finding:
    """Say what the run's data are like; a named dataset is kept in the storage itself."""
    error = survey.data_error
    if error and survey.storage_error and run.config.data in DATASETS and is_of_storage(error):
        return skipped("data", "they are kept in the storage, which has failed")
    shards = {name: answer.data for name, answer in survey.spoke.items() if answer.data}
    return check_data(survey.expected, shards, text_of(error))


def tokenizer_finding(run: MeantRun, *, storage_is_away: bool) -> Finding:
    """Say whether the tokenizers of a run agree."""
    config = run.config
    is_unknown = storage_is_away and any(map(is_of_storage, run.settings_errors))
    if config.tokenizer is None and is_unknown:
        return skipped("tokenizer", "the run's own is in the storage, which has failed")
    seen, error = attempt(lambda: look_at_tokenizer(config, run.folder))
    facts = seen or TokenizerFacts(error=text_of(error))
    vocab_size = config.vocab_size or facts.vocab_size
    if vocab_size is None and facts.error is None:
        return skipped("tokenizer", UNDECIDED)
    return check_tokenizer(facts, vocab_size or 0)


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
    if run is not None:
        findings.append(memory_finding(nodes, run))
    return findings


def memory_finding(nodes: list[Node], run: MeantRun) -> Finding:
    """Look at the memory, be it for the workers that find room where those asked for do not."""
    resources = any_room(run)
    if run.recipe is None:
        return skipped("memory", UNDECIDED)
    if resources is None:
        return skipped("memory", "there is no room for a worker")
    finding = step_finding(nodes, run.config, run.recipe, resources)
    if run.resources is not None:
        return finding
    workers = f"{resources.num_workers[1]} worker(s), for whom there is room"
    return dataclasses.replace(finding, found=f"with {workers}: {finding.found}")


def step_finding(
    nodes: list[Node], config: PretrainConfig, recipe: Recipe, resources: connection.Resources
) -> Finding:
    """Make one step of the real model at the real batch on one node that trains."""
    fitting = [n for n in nodes if (n.num_gpus if resources.use_gpu else n.trains)]
    if not fitting:
        return skipped("memory", "no node for workers is there yet")
    size = recipe.device_batch_size
    logger.info("making one step of %d rows on %s", size, fitting[0].name)
    step = probe_step(fitting[0], recipe, eager=config.eager, threads=resources.threads_per_worker)
    workers = resources.num_workers[1]
    if step is None or isinstance(step, str):
        return check_memory(step, estimate_bytes(recipe, size, workers), 1)
    sharing = 1 if resources.use_gpu else math.ceil(workers / len(fitting))
    if not step.fits:
        alone, *each = (
            estimate_bytes(recipe, size, count, on_gpu=resources.use_gpu)
            for count in (1, *resources.num_workers)
        )
        return check_lone_step(step, alone, sharing * max(each))
    expected = expected_peak(step.peak_bytes, recipe, size, workers)
    return check_memory(step, expected, sharing)
