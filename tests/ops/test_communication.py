import dataclasses

import pytest

from nanoray.config import InputError
from nanoray.model.scaling import gpt_config
from nanoray.ops.communication import (
    Links,
    Work,
    communication_facts,
    links_of,
    saturation,
    scaled,
    workers_on,
)

P5 = links_of("h100", None, None)
D34 = Work(
    model=gpt_config(34, 65_536, head_dim=128, max_seq_len=2048),
    rows_per_step=256,
    device_batch_size=4,
    row_seconds=1.426509e10 * 2048 / (0.474 * 989e12),
    gpus_per_node=8,
    num_steps=169_150,
    dollars_per_gpu_hour=3.0,
)


def test_eight_nodes_of_d34_take_what_is_worked_out_by_hand() -> None:
    step = scaled(D34, P5, 8)

    # 64 GPUs with 4 rows of 2048 at 1.4265e10 FLOPs a token, 474 of 989 TFLOP/s of them.
    assert step.compute_seconds == pytest.approx(0.2493, abs=1e-4)
    # 63/64 of 14.4745 GB at 80 % of 400 GB/s, there and back.
    assert step.reduce_scatter_seconds == pytest.approx(0.04453, abs=1e-5)
    assert step.communication_seconds == pytest.approx(0.08905, abs=1e-5)
    assert step.step_seconds == pytest.approx(0.3383, abs=2e-4)
    assert step.efficiency == pytest.approx(0.2493 / 0.3383, abs=1e-3)
    assert (step.rows_per_gpu, step.microbatches_per_gpu) == (4, 1)
    # All 4 rows are the last microbatch, and two thirds of it are its backward pass.
    assert step.last_backward_seconds == pytest.approx(2 / 3 * step.compute_seconds)


def test_one_node_is_as_fast_as_nvlink_and_several_as_their_slowest_link() -> None:
    assert P5.bus_bandwidth(1) == 370e9
    assert P5.bus_bandwidth(2) == 320e9
    assert dataclasses.replace(P5, line_rate=800e9).bus_bandwidth(2) == 370e9


def test_the_rank_with_most_rows_is_waited_for() -> None:
    # 256 rows over 24 ranks: 64 blocks of 4, so some ranks have 3 of them and others 2.
    step = scaled(D34, P5, 3)

    assert (step.rows_per_gpu, step.microbatches_per_gpu) == (12, 3)
    assert step.compute_seconds == pytest.approx(12 * D34.row_seconds)
    assert step.efficiency < 256 / 24 / 12


def test_a_network_without_limit_leaves_nothing_but_the_arithmetic() -> None:
    free = Links(1e30, 1e30, "", "")

    assert scaled(D34, free, 8).efficiency == pytest.approx(1)
    assert scaled(D34, free, 8).step_seconds == pytest.approx(scaled(D34, free, 1).step_seconds / 8)


def test_where_it_saturates_is_where_the_table_says() -> None:
    found = saturation(D34, P5)

    efficiency = {n: scaled(D34, P5, n).efficiency for n in range(1, 33)}
    seconds = {n: scaled(D34, P5, n).step_seconds for n in efficiency}
    assert found.inefficient_nodes == 1 + max(n for n, e in efficiency.items() if e >= 0.9) == 3
    assert found.fastest_nodes == min(seconds, key=lambda n: seconds[n])
    assert (found.part_batch_nodes, found.most_nodes) == (9, 32)


def test_uneven_rows_on_few_nodes_are_not_where_it_saturates() -> None:
    work = dataclasses.replace(D34, rows_per_step=1024)

    found = saturation(work, P5).inefficient_nodes

    assert scaled(work, P5, 3).efficiency < 0.9 < scaled(work, P5, 8).efficiency
    assert found is not None
    assert found > 8
    assert saturation(work, Links(1e30, 1e30, "", "")).inefficient_nodes is None


def test_four_times_the_batch_leaves_as_much_to_send_and_four_times_as_much_to_compute() -> None:
    small, large = (
        scaled(work, P5, 8) for work in (D34, dataclasses.replace(D34, rows_per_step=1024))
    )

    assert large.communication_seconds == small.communication_seconds
    assert large.compute_seconds == pytest.approx(4 * small.compute_seconds)
    assert large.efficiency > 0.9 > small.efficiency


def test_hours_and_dollars_follow_from_the_step() -> None:
    facts = communication_facts(D34, P5, 8)

    row = next(row for row in facts["table"] if row["nodes"] == 8)
    assert row["hours"] == pytest.approx(169_150 * row["step_seconds"] / 3600)
    assert row["dollars"] == pytest.approx(row["hours"] * 64 * 3)
    assert row["speedup"] == pytest.approx(facts["table"][0]["hours"] / row["hours"])
    assert facts["table"][0]["speedup"] == 1
    assert facts["overlap_seconds"] == 0


@pytest.mark.parametrize(
    ("nodes", "workers", "sentence"),
    [
        (0, None, "--nodes 0 is too small. The least is 1."),
        (-2, 8, "--nodes -2 is too small"),
        (8, 4, "--num-workers 4 does not fit --nodes 8"),
        (8, 12, "--num-workers 12 does not fit --nodes 8"),
        (2, 64, "--num-workers 64 does not fit --nodes 2"),
    ],
)
def test_workers_that_do_not_fit_on_the_nodes_are_named(
    nodes: int, workers: int | None, sentence: str
) -> None:
    with pytest.raises(InputError) as raised:
        workers_on(nodes, workers)

    assert sentence in str(raised.value)


def test_a_node_may_lend_some_of_its_gpus() -> None:
    assert (workers_on(8, None), workers_on(8, 32), workers_on(8, 8)) == (64, 32, 8)


def test_what_nobody_has_measured_has_to_be_given() -> None:
    with pytest.raises(InputError, match="--gpu l40s has no known bandwidth inside"):
        links_of("l40s", 100, None)
    with pytest.raises(InputError, match="--gpu l40s has no known network"):
        links_of("l40s", None, 25)

    assert links_of("l40s", 100, 25).bus_bandwidth(2) == pytest.approx(0.8 * 12.5e9)


def test_some_gpus_of_a_node_have_their_own_cards_of_its_network() -> None:
    one, half = links_of("h100", None, None, 1), links_of("h100", None, None, 4)

    assert (one.line_rate, half.line_rate) == (P5.line_rate / 8, P5.line_rate / 2)
    assert one.line_rate == 50e9, "four cards of 100 Gbit/s each"
    assert one.line_rate_source == "1 of the 8 GPUs of AWS's nodes with h100"
    assert links_of("h100", 100, None, 1).line_rate == 12.5e9, "what is given is the node's"


def test_more_gpus_than_rows_are_refused() -> None:
    with pytest.raises(InputError, match="Give at most 32, or a larger --total-batch-tokens"):
        communication_facts(D34, P5, 33)
