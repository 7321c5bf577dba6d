from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nanoray.config import InputError, RunFailedError, run_job
from nanoray.ops import chaos as chaos_module
from nanoray.ops.chaos import ChaosConfig, as_table, chaos, plans, require_recovery
from nanoray.ops.chaos_faults import FAULTS
from nanoray.ops.chaos_trial import Injury, Plan, Trial


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"faults": ("worker", "nod")}, "--faults nod is unknown. Choose among worker, freeze"),
        ({"faults": ()}, "Choose among worker"),
        ({"seeds": 0}, "--seeds 0"),
        ({"per_run": -1}, "--per-run -1"),
        ({"outage_seconds": 0.0}, "--outage-seconds 0"),
        ({"pretrain": "--depth 1 --run mine"}, "--pretrain has --run, which is decided here"),
        ({"pretrain": "--storage=x"}, "--pretrain has --storage, which is decided here"),
        ({"pretrain": "--depth '1"}, "--pretrain --depth '1 cannot be read"),
    ],
)
def test_wrong_input_is_one_sentence(fields, problem):
    with pytest.raises(InputError) as raised:
        ChaosConfig(**fields)

    assert problem in str(raised.value)


def test_each_fault_has_runs_of_its_own_at_moments_drawn_from_the_seed():
    config = ChaosConfig(faults=tuple(FAULTS), seeds=5)

    drawn = list(plans(config, 200))

    assert [plan.run for plan in drawn[:2]] == ["worker-0", "freeze-0"]
    assert len(drawn) == 5 * len(FAULTS)
    assert drawn == list(plans(config, 200))
    moments = [step for plan in drawn for step, _ in plan.faults]
    assert 20 <= min(moments) < max(moments) < 140
    assert len(set(moments)) > 30


def test_one_run_can_have_many_faults_in_the_order_of_their_steps():
    config = ChaosConfig(faults=("worker", "driver"), per_run=10, first_seed=7)

    [plan] = plans(config, 200)

    assert plan.run == "mixed-7"
    steps = [step for step, _ in plan.faults]
    assert steps == sorted(set(steps))
    assert {fault for _, fault in plan.faults} == {"worker", "driver"}


def test_more_faults_than_steps_are_refused():
    with pytest.raises(InputError, match=r"--per-run 50 .* 20 steps"):
        list(plans(ChaosConfig(per_run=50), 20))


def injury_of(fault: str, training: float | None, lost: int) -> Injury:
    return Injury(fault, "killed", 50, 1.5, training, None, lost)


def test_the_table_has_a_row_for_each_fault_and_each_run():
    well = Trial(Plan("worker-0", 0, ()), same_losses=True, same_ledger=True, same_weights=True)
    well.injuries = [injury_of("worker", 6.0, 4), injury_of("worker", 9.0, 12)]
    ill = Trial(Plan("node-0", 0, ()), ended="exit code 1")
    ill.injuries = [injury_of("node", None, 0)]

    table = as_table([well, ill])

    assert "worker │ 2     │ 1.5 s, at most 1.5 │ 7.5 s, at most 9.0 │ -" in table
    assert "8, at most 12" in table
    assert "node   │ 1     │ 1.5 s, at most 1.5 │ never" in table
    assert "exit code 1" in table
    assert "1 of 2 runs equal the undisturbed one bit for bit" in table


def test_a_run_that_differs_fails_the_job_with_the_reason_and_the_table():
    well = Trial(Plan("worker-0", 0, ()), same_losses=True, same_ledger=True, same_weights=True)
    ill = Trial(Plan("node-0", 0, ()), same_ledger=True, largest_difference=3.0)

    require_recovery([well], "the table")
    with pytest.raises(RunFailedError) as raised:
        require_recovery([well, ill], "the table")

    assert str(raised.value) == (
        "1 of 2 runs did not recover: node-0 (its losses differ by up to 3, its weights differ)\n"
        "the table"
    )


@pytest.mark.usefixtures("logging_as_before")
def test_the_flags_of_the_job_are_given_as_the_help_says(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["chaos.py", "--pretrain=--depth 1 --run mine"])

    with pytest.raises(SystemExit) as ended:
        run_job(ChaosConfig, chaos)

    assert ended.value.code == 2
    assert "--pretrain has --run, which is decided here" in capsys.readouterr().err


def test_what_ray_prints_does_not_get_into_the_json(monkeypatch, capsys):
    @contextmanager
    def talkative(config: ChaosConfig) -> Iterator[None]:
        print("(raylet) Raylet is terminated.")
        raise InputError("no cluster")
        yield

    monkeypatch.setattr(chaos_module, "cluster_for", talkative)

    with pytest.raises(InputError, match="no cluster"):
        chaos(ChaosConfig(json=True))

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Raylet is terminated" in printed.err
