import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoray.config import (
    LARGEST_SEED,
    InputError,
    RunConfig,
    continue_config,
    flag,
    from_json,
    identity,
    require_checkpoint_name,
    require_no_secret,
    to_json,
    worker_range,
)

JOB = '''
import logging, os, signal, time
from dataclasses import dataclass

from nanoray.config import InputError, RunConfig, RunReplacedError, run_job

@dataclass(frozen=True, kw_only=True)
class TinyConfig(RunConfig):
    """A job that ends as it is told."""

    depth: int = 4
    """Transformer blocks."""
    ending: str = "well"
    """How the job ends."""

def job(config):
    if config.ending == "wrong":
        raise InputError(f"--depth {config.depth} is odd. Give an even one.")
    if config.ending == "replaced":
        raise RunReplacedError("/s/r", 1, 2, "process 7 on b")
    if config.ending == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    if config.ending == "talking":
        logging.getLogger("nanoray.somewhere").info("saved step 3")
        logging.getLogger("elsewhere").info("not of interest")
        return None
    if config.ending == "telling":
        address = "https://me:sentinel@host/x"
        try:
            raise ValueError(address)
        except ValueError:
            logging.getLogger("elsewhere").exception("%s failed", address)
        raise InputError(f"{address} does not answer. Try again.")
    if config.ending == "broken":
        raise RuntimeError("a fault of ours")
    return f"depth {config.depth}"

run_job(TinyConfig, job)
'''


@dataclass(frozen=True, kw_only=True)
class TinyConfig(RunConfig):
    """A config with fields of both kinds."""

    depth: int | None = identity()
    """Identity, left open by default."""
    seed: int = identity(42)
    """Identity, with a default."""
    batch: int | None = None
    """Execution."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(JOB)
    return file


def run(job: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(job), *arguments], capture_output=True, text=True, timeout=60
    )


def test_config_comes_back_from_its_json() -> None:
    config = TinyConfig(run="demo", num_workers="2:8", depth=4, batch=3, cpus_per_worker=1.5)

    rebuilt = from_json(TinyConfig, json.loads(json.dumps(to_json(config))))

    assert rebuilt == config


def test_keys_of_another_version_are_left_out() -> None:
    saved = {"format_version": 1, "depth": 4, "of_a_later_version": [1, 2]}

    config = from_json(TinyConfig, saved)

    assert config == TinyConfig(depth=4)


def test_resuming_with_another_identity_names_each_flag_and_both_values() -> None:
    began, asked = TinyConfig(depth=4, seed=42), TinyConfig(depth=6, seed=7)

    with pytest.raises(InputError) as caught:
        continue_config(began, asked)

    assert "--depth was 4 and is 6" in str(caught.value)
    assert "--seed was 42 and is 7" in str(caught.value)
    assert "--fresh" in str(caught.value)


def test_what_is_left_open_keeps_the_value_the_run_began_with() -> None:
    began, asked = TinyConfig(depth=4), TinyConfig(depth=None)

    merged = continue_config(began, asked)

    assert merged.depth == 4


def test_execution_fields_are_taken_from_the_resume() -> None:
    began = TinyConfig(depth=4, batch=8, keep_last=3, num_workers="2")
    asked = TinyConfig(depth=4, batch=2, keep_last=1, num_workers="4")

    merged = continue_config(began, asked)

    assert merged == asked


def test_an_identity_that_the_run_left_open_cannot_be_given_later() -> None:
    began, asked = TinyConfig(depth=None), TinyConfig(depth=4)

    with pytest.raises(InputError, match="--depth was None and is 4"):
        continue_config(began, asked)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), ("1", (1, 1)), ("8", (8, 8)), ("2:8", (2, 8)), ("3:3", (3, 3))],
)
def test_number_of_workers_is_one_number_or_a_range(
    given: str | None, expected: tuple[int, int] | None
) -> None:
    assert worker_range(given) == expected


@pytest.mark.parametrize(
    "given", ["", "two", "-1", "2:", ":8", "2:x", "2:4:8", "1.5", "0", "8:2", "²"]
)
def test_other_numbers_of_workers_are_refused_with_the_right_form(given: str) -> None:
    with pytest.raises(InputError, match=r"Write 8, or 2:8"):
        RunConfig(num_workers=given)


@pytest.mark.parametrize(
    "given",
    [
        *("", "a/b", "..", ".hidden", "a b", "a@3", "a\\b", "x::y", "a*", "[a]", "a?"),
        *("-x", "a\nb", "a\n", "s3:", "größe", "~", "$HOME", "a" * 201),
    ],
)
def test_a_run_must_be_a_name_of_a_folder(given: str) -> None:
    with pytest.raises(InputError, match=r"^--run '.*' cannot name a folder\. Use "):
        RunConfig(run=given)
    with pytest.raises(InputError, match=r"^--from '.*' cannot name a folder\. Use "):
        require_checkpoint_name("--from", f"{given.replace('/', ' ').replace('@', ' ')}/sft@12")


@pytest.mark.parametrize("given", ["datasets", "Datasets"])
def test_a_run_is_not_called_as_the_folder_of_named_datasets(given: str) -> None:
    with pytest.raises(InputError, match=f"^--run {given} is the name of the folder of named"):
        RunConfig(run=given)


def test_names_of_letters_digits_and_a_few_signs_will_do() -> None:
    for name in ("d20", "_a", "D34-r40.5_x", "d4-r10-s42-0123abcd", "7", "a" * 200):
        assert RunConfig(run=name).run == name
        for checkpoint in (name, f"{name}/sft", f"{name}@3", f"{name}/sft@3"):
            require_checkpoint_name("--run", checkpoint)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 99999999999999999999999])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(
        InputError, match=rf"^--seed {seed} does not work\. Give a number from 0 to"
    ):
        RunConfig(seed=seed)
    torch.manual_seed(RunConfig(seed=LARGEST_SEED).seed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"save_every": 0},
        {"keep_last": 0},
        {"keep_every": -5},
        {"log_every": 0},
        {"threads_per_worker": 0},
        {"max_restarts": -1},
        {"save_at": (3, 0)},
        {"save_at": (-5,)},
    ],
)
def test_a_number_that_is_too_small_names_its_flag(wrong: dict[str, Any]) -> None:
    (name, value) = next(iter(wrong.items()))
    value = min(value) if isinstance(value, tuple) else value

    with pytest.raises(InputError, match=f"^{flag(name)} {value} is too small"):
        RunConfig(**wrong)


def test_a_job_prints_what_it_returns_and_exits_with_0(job: Path) -> None:
    done = run(job, "--depth", "6")

    assert (done.returncode, done.stdout, done.stderr) == (0, "depth 6\n", "")


def test_wrong_input_is_one_sentence_on_stderr_and_exit_code_2(job: Path) -> None:
    done = run(job, "--depth", "5", "--ending", "wrong")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --depth 5 is odd. Give an even one.\n"


def test_ctrl_c_says_how_to_go_on_and_exits_with_130(job: Path) -> None:
    done = run(job, "--ending", "interrupted")

    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Interrupted. The same command goes on from the newest checkpoint.\n"


def test_a_fault_of_ours_keeps_its_traceback(job: Path) -> None:
    done = run(job, "--ending", "broken")

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "a fault of ours" in done.stderr


def test_a_typo_in_a_flag_suggests_the_right_one(job: Path) -> None:
    done = run(job, "--depht", "5")

    assert (done.returncode, done.stdout) == (2, "")
    assert "--depht" in done.stderr
    assert "Perhaps you meant" in done.stderr
    assert "--depth INT" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--save-every", "0"), "--save-every 0 is too small"),
        (("--depth", "four"), "Error parsing --depth"),
    ],
)
def test_a_wrong_value_is_told_without_a_traceback(
    job: Path, arguments: tuple[str, str], said: str
) -> None:
    done = run(job, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_value_and_a_glob_without_quotes_are_one_sentence(job: Path) -> None:
    empty = run(job, "--storage", "")
    files = run(job, "--data", str(job), str(job.parent))

    assert (empty.returncode, files.returncode) == (2, 2)
    assert empty.stderr.startswith("error: --storage is empty, as with a variable of the shell")
    assert files.stderr.startswith(f"error: --data is followed by 2 files ({job}, {job.parent}, ")
    assert (empty.stderr + files.stderr).count("\n") == 2


def test_a_job_shows_what_nanoray_logs_and_no_chatter_of_others(job: Path) -> None:
    done = run(job, "--ending", "talking")

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("saved step 3\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["storage", "wandb_project"])
@pytest.mark.parametrize("address", ["s3://key:sentinel@bucket", "https://host/x?sig=sentinel"])
def test_an_address_with_a_secret_is_refused_without_showing_it(name: str, address: str) -> None:
    fields: dict[str, Any] = {name: address}
    with pytest.raises(InputError) as caught:
        TinyConfig(**fields)

    assert "sentinel" not in str(caught.value)
    assert "://" in str(caught.value)
    require_no_secret("abfs://container@account/runs")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dta", "s3://KEY:sentinel@bucket/x"),
        ("--storag=s3://KEY:sentinel@bucket/x",),
        ("--depth", "s3://KEY:sentinel@bucket/x"),
        ("--depth", "https://host/x?sig=sentinel"),
        ("https://me:1234/sentinel@host/x", "--help"),
    ],
)
def test_the_parser_shows_no_secret_of_an_address(job: Path, arguments: tuple[str, ...]) -> None:
    done = run(job, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "has a secret in it (***)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "sentinel" not in done.stderr


def test_what_a_job_says_shows_no_secret_of_an_address(job: Path) -> None:
    done = run(job, "--ending", "telling")

    assert "sentinel" not in done.stdout + done.stderr
    assert done.stderr.count("https://***@host/x") == 3
    assert done.returncode == 2


def test_a_fault_of_ours_is_told_without_the_secrets_in_its_text(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        JOB.replace("run_job(TinyConfig, job)", "")
        + "\ndef broken(config):\n    raise KeyError('https://me:sentinel@host/x')\n"
        + "run_job(TinyConfig, broken)\n"
    )

    done = run(file)

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "https://***@host/x" in done.stderr
    assert "sentinel" not in done.stderr


@pytest.mark.parametrize(
    "field", ["hang_seconds", "skip_sigmas", "save_every_minutes", "cpus_per_worker", "max_cost"]
)
def test_what_is_not_a_number_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=field.replace("_", "-")):
        TinyConfig(**dict[str, Any]({field: float("nan")}))


def test_a_run_that_another_start_has_taken_over_ends_as_what_is_not_to_be_tried_again(
    job: Path,
) -> None:
    done = run(job, "--ending", "replaced")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: /s/r: attempt 2 has replaced attempt 1, which saves ")
    assert done.stderr.count("\n") == 1


def test_what_a_job_says_is_json_where_that_is_asked_for(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANORAY_LOG_FORMAT", "json")

    def told(ending: str) -> dict[str, str]:
        (line,) = run(job, "--depth", "5", "--ending", ending).stderr.splitlines()
        return dict(json.loads(line))

    talking, wrong, broken = told("talking"), told("wrong"), told("broken")

    assert (talking["level"], talking["logger"]) == ("INFO", "nanoray.somewhere")
    assert talking["message"] == "saved step 3"
    assert (wrong["level"], wrong["logger"]) == ("ERROR", "nanoray")
    assert wrong["message"] == "error: --depth 5 is odd. Give an even one."
    assert "a fault of ours" in broken["message"]
    assert broken["traceback"].startswith("Traceback")


def test_a_format_of_lines_that_there_is_not_is_refused_in_one_sentence(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANORAY_LOG_FORMAT", "xml")

    done = run(job)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: NANORAY_LOG_FORMAT=xml is unknown. Choose text or json.\n"
