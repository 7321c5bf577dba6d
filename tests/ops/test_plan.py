import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nanoray.config import InputError
from nanoray.ops.plan import PlanConfig, plan
from nanoray.stages.pretrain_config import PretrainConfig

JOB = Path(__file__).parents[2] / "jobs" / "plan.py"
D34 = PretrainConfig(depth=34, tokens_per_param=40, device_batch_size=4, num_workers="8")


def test_the_plan_of_d34_has_the_numbers_of_the_published_run() -> None:
    facts = json.loads(plan(PlanConfig(pretrain=D34, json=True)))

    assert facts["parameters"] == 2_217_082_880
    assert facts["flops_per_token"] == pytest.approx(1.426509e10, rel=5e-7)
    assert facts["num_steps"] == 169_150
    assert facts["tokens"] == 88_683_315_200
    assert facts["total_flops"] == pytest.approx(1.265075e21, rel=5e-7)
    assert (facts["microbatches_per_step"], facts["microbatches_per_worker"]) == (64, 8)
    # d34.md: 263k tokens/s, 1.99 s per step, 93.7 h at 47.4 % of 8 x 989 TFLOP/s; $2,500 in all.
    assert facts["tokens_per_second"] == pytest.approx(263_000, rel=1e-3)
    assert facts["seconds_per_step"] == pytest.approx(1.99, abs=0.005)
    assert facts["hours"] == pytest.approx(93.7, abs=0.05)
    assert 2000 < facts["dollars"] < 2500
    assert facts["data_shards"] == 1704


def test_the_parts_of_the_memory_sum_to_its_total() -> None:
    memory = json.loads(plan(PlanConfig(pretrain=D34, json=True)))["memory_per_gpu_bytes"]

    total = memory.pop("total")

    assert total == sum(memory.values())


def test_checkpoints_that_are_kept_for_good_take_their_room_on_the_disk() -> None:
    keeping = replace(D34, save_every=5000, keep_every=10_000, save_at=(5,))

    newest, more = (json.loads(plan(PlanConfig(pretrain=run, json=True))) for run in (D34, keeping))

    # 169,150 steps: 16 multiples of 10,000.
    assert newest["checkpoints_kept_bytes"] == 4 * newest["checkpoint_bytes"]
    assert more["checkpoints_kept_bytes"] == (4 + 16 + 1) * more["checkpoint_bytes"]


def test_float32_takes_twice_the_activations_and_at_least_twice_the_time() -> None:
    half, full = (
        json.loads(plan(PlanConfig(pretrain=replace(D34, dtype=dtype), json=True)))
        for dtype in ("bfloat16", "float32")
    )

    memory = [facts["memory_per_gpu_bytes"] for facts in (half, full)]
    assert memory[1]["activations"] == 2 * memory[0]["activations"]
    assert memory[1]["weights"] == memory[0]["weights"]
    assert full["hours"] == pytest.approx(2 * half["hours"])
    text = plan(PlanConfig(pretrain=replace(D34, dtype="float32")))
    assert "at 47.4 % MFU of TF32's peak on 8 h100" in text


def test_a_gpu_has_one_memory_with_and_without_the_section_on_nodes() -> None:
    facts = json.loads(plan(PlanConfig(pretrain=D34, nodes=1, json=True)))

    row = facts["communication"]["table"][0]
    assert facts["memory_per_gpu_bytes"]["padding"] > 2e9
    assert row["memory_bytes"] == facts["memory_per_gpu_bytes"]["total"]


def test_a_worker_more_costs_the_same_money_and_less_time() -> None:
    eight, sixteen = (
        json.loads(plan(PlanConfig(pretrain=PretrainConfig(num_workers=n), json=True)))
        for n in ("8", "16")
    )

    assert sixteen["hours"] == pytest.approx(eight["hours"] / 2)
    assert sixteen["dollars"] == pytest.approx(eight["dollars"])


@pytest.mark.parametrize(("workers", "most_rows"), [(8, 32), (100, 3), (200, 2), (256, 1)])
def test_a_step_takes_as_long_as_the_worker_with_most_rows(workers: int, most_rows: int) -> None:
    run = replace(D34, num_workers=str(workers))
    facts = json.loads(plan(PlanConfig(pretrain=run, json=True)))
    on_one_node = json.loads(plan(PlanConfig(pretrain=D34, json=True)))

    assert facts["seconds_per_step"] / on_one_node["seconds_per_step"] == pytest.approx(
        most_rows / 32
    )
    assert facts["dollars"] / on_one_node["dollars"] == pytest.approx(most_rows * workers / 256)
    assert ("at most 1 on each" in plan(PlanConfig(pretrain=run))) == (workers > 64)


def test_a_step_of_few_rows_has_no_more_workers_than_rows() -> None:
    run = PretrainConfig(depth=4, total_batch_tokens=4096)

    facts = json.loads(plan(PlanConfig(pretrain=run, json=True)))

    assert facts["num_workers"] == 2
    assert facts["microbatches_per_step"] * facts["device_batch_size"] == 2


def test_a_person_reads_the_same_numbers_without_json() -> None:
    text = plan(PlanConfig(pretrain=D34))

    for number in ("2,217,082,880", "1.426509e+10", "169,150 steps", "88,683,315,200", "$2,249"):
        assert number in text


def test_nodes_add_their_section_and_leave_the_plan_as_it_is() -> None:
    on_nodes = replace(D34, num_workers=None)
    plain = json.loads(plan(PlanConfig(pretrain=replace(D34, num_workers="64"), json=True)))
    facts = json.loads(plan(PlanConfig(pretrain=on_nodes, nodes=8, json=True)))
    text = plan(PlanConfig(pretrain=on_nodes, nodes=8))

    told = facts.pop("communication")
    assert facts == plain
    assert (
        told["step_seconds"] > plain["seconds_per_step"] == pytest.approx(told["compute_seconds"])
    )
    assert told["num_workers"] == 64
    assert [row["nodes"] for row in told["table"]] == [1, 2, 4, 8, 16, 32]
    assert f"{100 * told['efficiency']:.1f} % efficient" in text
    for row in told["table"]:
        assert f"{row['dollars']:,.0f}  {row['memory_bytes'] / 2**30:7.1f}" in text
    assert "below 90 % efficiency from 3 nodes on" in text
    assert "over 32 there is no row for each GPU (a step has 256)" in text


def test_the_section_of_the_document_is_what_is_printed() -> None:
    run = PretrainConfig(depth=34, tokens_per_param=40)

    text = plan(PlanConfig(pretrain=run, nodes=8))

    section = text[text.index("\nnodes ") :].strip()
    assert section in (JOB.parents[1] / "docs" / "clusters.md").read_text()


def test_without_nodes_nothing_is_said_of_communication() -> None:
    assert "communication" not in json.loads(plan(PlanConfig(pretrain=D34, json=True)))
    last = plan(PlanConfig(pretrain=D34)).splitlines()[-1]
    assert last == "cost       $2,249 at $3.00 per GPU-hour (--dollars-per-gpu-hour)"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("fineweb-edu", "data       1,704 shards of fineweb-edu, 170 GB"),
        (
            None,
            "data       the texts that come with nanoray, read 24,051 times; "
            "--data fineweb-edu gives other text: 1,704 shards of fineweb-edu, 170 GB",
        ),
        (
            "s3://bucket/text",
            "data       s3://bucket/text: 426 GB of text, as much as 1,704 shards of fineweb-edu "
            "have",
        ),
    ],
)
def test_the_data_are_those_that_the_flags_mean(data: str | None, told: str) -> None:
    assert told in plan(PlanConfig(pretrain=replace(D34, data=data))).splitlines()


def test_the_price_is_told_with_the_cost_that_it_makes() -> None:
    text = plan(PlanConfig(pretrain=replace(D34, dollars_per_gpu_hour=6.9)))

    assert "cost       $5,172 at $6.90 per GPU-hour (--dollars-per-gpu-hour)" in text


def test_a_slower_network_costs_efficiency() -> None:
    fast, slow = (
        json.loads(plan(PlanConfig(nodes=2, network_gbit=gbit, json=True)))["communication"]
        for gbit in (3200.0, 100.0)
    )

    # 80 % of 12.5 GB/s and of 400 GB/s.
    assert slow["communication_seconds"] == pytest.approx(32 * fast["communication_seconds"])
    assert slow["efficiency"] < fast["efficiency"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"gpu": "abacus"}, "--gpu abacus is not in the table"),
        ({"mfu": 0.0}, "--mfu 0.0 is not a utilization"),
        ({"mfu": 1.5}, "--mfu 1.5 is not a utilization"),
        ({"nodes": 0}, "--nodes 0 is too small. The least is 1."),
        ({"nodes": 8, "network_gbit": -1.0}, "--network-gbit -1.0 is not a bandwidth"),
        ({"nodes": 8, "network_gbit": math.nan}, "--network-gbit nan is not a bandwidth"),
        ({"nodes": 8, "inside_gbyte": 0.0}, "--inside-gbyte 0.0 is not a bandwidth"),
        ({"network_gbit": 100.0}, "--network-gbit 100.0 is of nodes. Give --nodes besides."),
        ({"nodes": 64}, "--nodes 64 have 512 GPUs, and a step has 256 rows. Give at most 32"),
    ],
)
def test_what_cannot_be_planned_is_named(fields: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        plan(PlanConfig(**fields))  # type: ignore[arg-type]  # one table for fields of two types

    assert sentence in str(raised.value)


def test_the_job_plans_without_a_cluster_and_refuses_in_one_sentence(tmp_path: Path) -> None:
    planned, refused = (
        subprocess.run(
            [sys.executable, JOB, "--depth", depth, "--json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        for depth in ("12", "0")
    )

    assert json.loads(planned.stdout)["parameters"] == 185_597_952
    assert (planned.returncode, refused.returncode) == (0, 2)
    assert refused.stderr == "error: --depth 0 is too small. The least is 1.\n"
    assert list(tmp_path.iterdir()) == []
