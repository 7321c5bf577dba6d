"""Four depths by four budgets: undisturbed, killed twice, and as a shell loop.

`python -m pytest -s -m slow tests/ops/test_sweep_of_sixteen.py` prints the times; two cores need
three quarters of an hour.
"""

import json
import subprocess
import time
from pathlib import Path

import pytest

from nanoray.ops.trial_table import Status, TrialRow, read_trials
from tests.heads import BIN, Head, running_head
from tests.running import current_step, kill_job, read_run, run_job, start_job

DEPTHS = (1, 2, 3, 4)
FLOPS = ("2e11", "4e11", "8e11", "1.6e12")
SHAPE = (
    *("--head-dim", 64, "--vocab-size", 512, "--max-seq-len", 128, "--eager"),
    *("--total-batch-tokens", 1024, "--device-batch-size", 8, "--validation-tokens", 65536),
    *("--newton-schulz-dtype", "float32", "--save-every-minutes", 0.2),
    *("--cpus-per-worker", 1, "--threads-per-worker", 2),
)
SWEEP = ("--depths", ",".join(map(str, DEPTHS)), "--flops", ",".join(FLOPS), "--branch", *SHAPE)
KILLED_AT = (500, 4800)
"""Steps of all trials together, of about 6,500 with those that branches take over."""


def driver_env(head: Head) -> dict[str, str]:
    """Give what a job needs to reach the head."""
    return {"RAY_ADDRESS": head.address, "RAY_AUTH_TOKEN": head.env["RAY_AUTH_TOKEN"]}


def steps_together(storage: Path) -> int:
    """Count the steps of all trials."""
    return sum(current_step(storage / "sweep", path.name) for path in storage.glob("sweep/d*"))


def whole_sweep(storage: Path, env: dict[str, str]) -> tuple[dict[str, TrialRow], float]:
    """Run the sweep, or what is left of it; gives its trials by name, and the seconds it took."""
    began = time.monotonic()
    code, output = run_job("sweep.py", *sweep_flags(storage), env=env, timeout=5400)
    assert code == 0, output
    print(output)
    rows = read_trials(str(storage / "sweep"))
    assert [row.status for row in rows] == [Status.DONE] * 16, output
    return {row.name: row for row in rows}, time.monotonic() - began


def sweep_flags(storage: Path) -> tuple[object, ...]:
    """Give the flags of the sweep."""
    return ("--run", "sweep", "--storage", storage, *SWEEP)


def kill_twice(storage: Path, env: dict[str, str]) -> None:
    """Begin the sweep, kill its driver on the way, and do so again."""
    for at in KILLED_AT:
        job = start_job("sweep.py", *sweep_flags(storage), env=env)
        while steps_together(storage) < at:
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.2)
        print(f"killed at {steps_together(storage)} steps")
        kill_job(job)


def shell_loop(storage: Path, tokenizer: Path, env: dict[str, str]) -> float:
    """Train the same trials one after the other, each by itself; gives the seconds it took."""
    began = time.monotonic()
    for depth in DEPTHS:
        for flops in FLOPS:
            flags = ("--depth", depth, "--target-flops", flops, "--tokenizer", tokenizer, *SHAPE)
            run = ("--run", f"{depth}-{flops}", "--storage", storage)
            code, output = run_job("pretrain.py", *run, *flags, env=env, timeout=1800)
            assert code == 0, output
    return time.monotonic() - began


def left_placement_groups(head: Head) -> list[str]:
    """Give the states of the placement groups that `ray list` shows."""
    command = [str(BIN / "ray"), "list", "placement-groups", "--format", "json", "--limit", "1000"]
    listed = subprocess.run(
        [*command, "--address", head.url],
        env=head.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [group["state"] for group in json.loads(listed.stdout)]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(10_800)
def test_sixteen_trials_killed_twice_equal_undisturbed_ones_and_a_shell_loop(
    tmp_path: Path,
) -> None:
    with running_head("--num-cpus", 2) as head:
        env = driver_env(head)
        calm, calm_seconds = whole_sweep(tmp_path / "calm", env)
        assert set(left_placement_groups(head)) <= {"REMOVED"}
        kill_twice(tmp_path / "killed", env)
        killed, _ = whole_sweep(tmp_path / "killed", env)
        states = left_placement_groups(head)
        print(f"placement groups: {states}")
        loop_seconds = shell_loop(tmp_path / "loop", tmp_path / "calm/sweep/tokenizer.json", env)

    print(f"sweep {calm_seconds:.0f} s, {16 * 3600 / calm_seconds:.1f} trials per hour")
    print(f"shell loop {loop_seconds:.0f} s, {16 * 3600 / loop_seconds:.1f} trials per hour")
    assert set(states) <= {"REMOVED"}
    assert list(calm) == list(killed)
    for name, row in calm.items():
        assert row.bits_per_byte == killed[name].bits_per_byte
        once = read_run(tmp_path / "calm/sweep", name)
        assert once == read_run(tmp_path / "killed/sweep", name)
        flops = min(FLOPS, key=lambda given: abs(float(given) / row.flops - 1))
        alone = read_run(tmp_path / "loop", f"{row.depth}-{flops}")
        # A branch has the validations of its trunk up to where it begins: at other steps, then.
        assert once.pop("bits_per_byte")[-1] == alone.pop("bits_per_byte")[-1]
        assert once == alone
