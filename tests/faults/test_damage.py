"""A damaged checkpoint costs the steps since the one before it, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.test_kill import arguments, calm
from tests.running import Cluster, kill_job, read_run, run_job, start_job, wait_for_step


def truncate(step: Path) -> None:
    """Cut the weights in half."""
    weights = step / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)


def zero_4_kilobytes(step: Path) -> None:
    """Zero one block of the weights, which a torch file would load without a word."""
    weights = step / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes(4096))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, zero_4_kilobytes])
def test_a_damaged_checkpoint_is_passed_over_with_one_warning(
    ray_cluster: Cluster, tmp_path: Path, damage: Callable[[Path], None]
):
    env = ray_cluster.environment()
    expected = calm(ray_cluster, 1, steps=60)
    process = start_job("pretrain.py", *arguments(tmp_path, "hurt", 1, steps=60), env=env)
    wait_for_step(process, tmp_path, "hurt", 45)
    kill_job(process)

    checkpoints = tmp_path / "hurt" / "pretrain" / "checkpoints"
    newest = sorted(checkpoints.glob("step_*"))[-1]
    assert newest.name != "step_000060", "the run ended before it was killed"
    damage(newest)
    code, output = run_job("pretrain.py", *arguments(tmp_path, "hurt", 1, steps=60), env=env)

    assert code == 0, output
    assert output.count("is damaged") == 1
    assert f"from the checkpoint of step {int(newest.name[5:]) - 20}\n" in output
    assert [p.name.partition("-")[0] for p in (checkpoints / "damaged").iterdir()] == [newest.name]
    assert read_run(tmp_path, "hurt") == expected
