"""Imports point down: the table of docs/architecture.md, read from the source of every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: dict[str, int] = {
    "nanoray/__init__.py": 0,
    "nanoray/config.py": 0,
    "nanoray/credentials.py": 0,
    "nanoray/logs.py": 0,
    "nanoray/shell_words.py": 0,
    "nanoray/storage.py": 0,
    "nanoray/storage_errors.py": 0,
    "nanoray/metrics.py": 0,
    "nanoray/wandb_run.py": 0,
    "nanoray/events.py": 0,
    "nanoray/goodput.py": 0,
    "nanoray/prices.py": 0,
    "nanoray/progress.py": 0,
    "nanoray/report.py": 1,
    "nanoray/report_card.py": 1,
    "nanoray/plots.py": 1,
    "nanoray/task.py": 1,
    "nanoray/text/": 1,
    "nanoray/data/": 2,
    "nanoray/model/": 2,
    "nanoray/train/": 3,
    "nanoray/inference/": 3,
    "nanoray/cluster/": 4,
    "nanoray/rl/": 4,
    "nanoray/serve/": 4,
    "nanoray/stages/": 5,
    "nanoray/ops/": 6,
    "evals/": 6,
    "jobs/": 7,
    "serve_app.py": 7,
}

MAY_IMPORT_RAY = [
    "nanoray/cluster/connection.py",
    "nanoray/cluster/deadline.py",
    "nanoray/cluster/decisions.py",
    "nanoray/cluster/devices.py",
    "nanoray/cluster/gauges.py",
    "nanoray/cluster/group.py",
    "nanoray/cluster/growth.py",
    "nanoray/cluster/head.py",
    "nanoray/cluster/leaving.py",
    "nanoray/cluster/loopback.py",
    "nanoray/cluster/monitor.py",
    "nanoray/cluster/network.py",
    "nanoray/cluster/pending.py",
    "nanoray/cluster/placement.py",
    "nanoray/cluster/reservations.py",
    "nanoray/cluster/turns.py",
    "nanoray/cluster/watch.py",
    "nanoray/cluster/watchdog.py",
    "nanoray/data/feed.py",
    "nanoray/data/ray_data.py",
    "nanoray/data/word_counts.py",
    "nanoray/ops/admission.py",
    "nanoray/ops/chaos.py",
    "nanoray/ops/chaos_faults.py",
    "nanoray/ops/doctor_before.py",
    "nanoray/ops/doctor_cluster.py",
    "nanoray/ops/local_cluster.py",
    "nanoray/ops/launch.py",
    "nanoray/ops/launch_arguments.py",
    "nanoray/ops/sweep_view.py",
    "nanoray/ops/tune_trials.py",
    "nanoray/rl/rollout_workers.py",
    "nanoray/serve/deployment.py",
    "nanoray/serve/remote_engine.py",
    "nanoray/serve/replica_port.py",
    "evals/contamination.py",
    "evals/run.py",
    "nanoray/data/row_counts.py",
    "nanoray/stages/plan_feed.py",  # streams the rows, and asks the pacer, an actor
    "nanoray/stages/rl_feed.py",  # gives Ray Train a stream that nobody reads
    "nanoray/stages/training_job.py",  # hands the stream of its rank to the feed
]

WITHOUT_RAY = ["nanoray/text", "nanoray/model", "nanoray/train", "nanoray/inference"]
WITHOUT_TORCH = [
    "nanoray/config.py",
    "nanoray/credentials.py",
    "nanoray/logs.py",
    "nanoray/shell_words.py",
    "nanoray/storage.py",
    "nanoray/metrics.py",
    "nanoray/events.py",
    "nanoray/goodput.py",
    "nanoray/prices.py",
    "nanoray/progress.py",
    "nanoray/report.py",
    "nanoray/report_card.py",
    "nanoray/plots.py",
    "nanoray/text",
]

IMPORT_ALL_WITHOUT = """
import importlib, importlib.abc, sys

forbidden, modules = sys.argv[1], sys.argv[2:]

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == forbidden:
            raise ModuleNotFoundError(f"{name} must not be needed", name=name)

sys.meta_path.insert(0, Forbid())
for module in modules:
    importlib.import_module(module)
assert forbidden not in sys.modules
print("imported", len(modules))
"""


def source_files() -> list[str]:
    """List all modules that have a floor, relative to the repository."""
    files = [*ROOT.glob("nanoray/**/*.py"), *ROOT.glob("evals/**/*.py"), *ROOT.glob("jobs/*.py")]
    files += ROOT.glob("serve_app.py")
    return sorted(str(file.relative_to(ROOT)) for file in files)


def floor_of(path: str) -> int | None:
    """Give the floor of a module; None where the table has no place for it."""
    return FLOORS.get(path, FLOORS.get(path[: path.rfind("/") + 1]))


def path_of(module: str) -> str | None:
    """Give the file of one of our modules by its dotted name; None for what is not a module."""
    stem = module.replace(".", "/")
    found = [path for path in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / path).exists()]
    return found[0] if found else None


def imported_modules(tree: ast.AST) -> list[str]:
    """List the dotted names of all modules that are imported, wherever the import stands."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from nanoray import cluster` imports a module, `from nanoray.config import flag` not.
            inner = [f"{module}.{alias.name}" for alias in node.names]
            names += [name if path_of(name) else module for name in inner]
    return names


def problem(path: str, floor: int, name: str) -> str | None:
    """Say what is wrong with the import of a module on a floor; None if nothing is."""
    top = name.split(".")[0]
    if name.startswith("."):
        return f"{path} imports {name}: write the whole name"
    if top == "ray" and path not in MAY_IMPORT_RAY:
        return f"{path} imports ray and is not in MAY_IMPORT_RAY"
    if top not in ("nanoray", "evals", "jobs", "serve_app"):
        return None
    target = path_of(name)
    reached = floor_of(target) if target else None
    if target is None or reached is None:
        return f"{path} imports {name}, which has no floor"
    if path.startswith("nanoray/") and top == "evals":
        return f"{path} imports {name}: nanoray never imports evals"
    same_room = Path(path).parent == Path(target).parent
    if reached > floor or (reached == floor and not same_room):
        return f"{path} (floor {floor}) imports {target} (floor {reached})"
    return None


def violations(path: str, source: str) -> list[str]:
    """List what is wrong with the imports of a module."""
    floor = floor_of(path)
    if floor is None:
        return [f"{path} has no floor"]
    tree = ast.parse(source)
    problems = [problem(path, floor, name) for name in imported_modules(tree)]
    hidden = [
        f"{path} imports by a computed name"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
    ]
    return [found for found in problems if found] + hidden


def import_without(forbidden: str, rooms: list[str]) -> subprocess.CompletedProcess[str]:
    """Import every module of some rooms in a process in which a package cannot be imported."""
    files = [file for file in source_files() if file.startswith(tuple(rooms))]
    modules = [
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files
    ]
    assert modules, f"nothing in {rooms}"
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL_WITHOUT, forbidden, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("path", source_files())
def test_every_import_points_down(path: str) -> None:
    source = (ROOT / path).read_text()

    problems = violations(path, source)

    assert problems == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nanoray/model/gpt.py", "import nanoray.train.loop"),
        ("nanoray/model/gpt.py", "from nanoray.data.plan import Cursor"),
        ("nanoray/model/gpt.py", "def f():\n    from nanoray.data import plan"),
        ("nanoray/model/gpt.py", "from . import attention"),
        ("nanoray/model/gpt.py", "from nanoray.model.nowhere import x"),
        ("nanoray/text/bpe.py", "if TYPE_CHECKING:\n    from nanoray import cluster"),
        ("nanoray/text/bpe.py", "from nanoray.report import write_report"),
        ("nanoray/config.py", "from nanoray.plots import loss_chart"),
        ("nanoray/train/loop.py", "import ray"),
        ("nanoray/train/loop.py", "def f():\n    from ray.train import report"),
        ("nanoray/train/loop.py", "importlib.import_module('nanoray.cluster')"),
        ("nanoray/train/loop.py", "__import__('nanoray.cluster')"),
        ("nanoray/stages/pretrain.py", "import nanoray.ops.fetch"),
        ("nanoray/stages/pretrain.py", "import evals"),
        ("evals/core.py", "import nanoray.ops.fetch"),
        ("jobs/pretrain.py", "import ray"),
        ("nanoray/nowhere.py", ""),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str) -> None:
    problems = violations(path, source)

    assert len(problems) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nanoray/model/gpt.py", "from nanoray.model.attention import causal_attention"),
        ("nanoray/model/gpt.py", "from nanoray.text.chat import IGNORE_INDEX\nimport torch"),
        ("nanoray/report.py", "from nanoray import __version__\nfrom nanoray.plots import x"),
        ("nanoray/cluster/group.py", "import ray.train\nfrom nanoray import storage"),
        ("jobs/pretrain.py", "from nanoray.stages.pretrain import pretrain"),
        ("evals/run.py", "from nanoray.cluster import connect"),
    ],
)
def test_an_import_that_points_down_is_allowed(path: str, source: str) -> None:
    problems = violations(path, source)

    assert problems == []


def test_every_file_that_may_import_ray_does() -> None:
    sources = {path: ast.parse((ROOT / path).read_text()) for path in MAY_IMPORT_RAY}

    tops = {
        path: {name.split(".")[0] for name in imported_modules(tree)}
        for path, tree in sources.items()
    }

    assert [path for path in MAY_IMPORT_RAY if "ray" not in tops[path]] == []


def test_text_model_training_and_inference_work_where_ray_is_not_installed() -> None:
    done = import_without("ray", WITHOUT_RAY)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_lowest_floors_work_where_torch_is_not_installed() -> None:
    done = import_without("torch", WITHOUT_TORCH)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_module_that_needs_what_is_not_installed_is_found() -> None:
    done = import_without("torch", ["nanoray/model/loss.py"])

    assert "torch must not be needed" in done.stderr
