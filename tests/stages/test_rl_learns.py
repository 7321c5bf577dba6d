"""RL on a model that fine-tuning left half able: it answers more held-out questions afterwards."""

import json
from pathlib import Path

import pytest

from tests.running import Cluster, run_job

SHAPE: tuple[object, ...] = (
    *("--depth", 4),
    *("--head-dim", 64),
    *("--vocab-size", 1024),
    *("--max-seq-len", 256),
    *("--total-batch-tokens", 4096),
    *("--device-batch-size", 16),
)
WORKERS: tuple[object, ...] = ("--eager", "--threads-per-worker", 2, "--cpus-per-worker", 1)
LESSON: tuple[object, ...] = (
    *("--mixture", "arithmetic=12000"),
    *("--learn", "assistant"),
    *("--lr-fraction", 0.5),
    *("--warmdown-ratio", 0.2),
    *("--skip-sigmas", 0),
    *("--total-batch-tokens", 4096),
    *("--device-batch-size", 16),
)
PRACTICE: tuple[object, ...] = (
    *("--tasks", "arithmetic"),
    *("--task-size", 4000),
    *("--examples-per-step", 32),
    *("--num-samples", 8),
    *("--max-new-tokens", 64),
    *("--lr-fraction", 0.1),
    *("--skip-sigmas", 0),
    *("--device-batch-size", 64),
    *("--validate-every", 10),
    *("--validation-questions", 128),
    *("--validation-samples", 4),
)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(5400)
def test_rl_raises_the_pass_rate_of_a_fine_tuned_model_with_three_seeds(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()

    def run(job: str, name: str, *flags: object) -> None:
        given = ("--run", name, "--storage", tmp_path, *flags, *WORKERS)
        code, output = run_job(job, *given, env=env, timeout=3000)
        assert code == 0, output

    run("pretrain.py", "base", *SHAPE, "--num-steps", 150)
    run("sft.py", "chat", "--from", "base/pretrain", *LESSON, "--num-steps", 50)
    for seed in (1, 2, 3):
        start = ("--from", "chat/sft", "--seed", seed)
        run("rl.py", f"rl{seed}", *start, *PRACTICE, "--num-steps", 40)

        folder = tmp_path / f"rl{seed}" / "rl"
        before = json.loads((folder / "before.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        measured = [before, *(line for line in lines if "validation/pass_at_1" in line)]
        rates = [values["validation/pass_at_1"] for values in measured]
        print(f"seed {seed}:", *(f"{rate:.3f}" for rate in rates))
        errors = [values["validation/pass_at_1_error"] for values in (before, measured[-1])]
        assert rates[-1] - rates[0] > 2 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
        assert "Held-out questions" in (folder / "report.html").read_text()
