import dataclasses
import html.parser
import json
import math
import os
import platform
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from nanoray.metrics import MetricsLogger
from nanoray.report import ReportFacts, environment, git_commit, gpu_names, shown, write_report
from nanoray.storage import RunFolder, StageFolder

FACTS = ReportFacts(
    title="demo / pretrain",
    summary={"Parameters": "73,531,392", "Final bits per byte": "1.118"},
    derivation={"Width": "4 x 64 = 256"},
    resume_command="python jobs/pretrain.py --run demo --depth 4",
    samples=[("Once upon", " a time\n    there was")],
)
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """What a browser would make of a report: its elements, its text, and tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def rows(self) -> dict[str, str]:
        return dict(zip(self.texts["th"], self.texts["td"], strict=True))


def record(step: int, /, **values: float) -> dict[str, object]:
    """What the training loop writes down of a step."""
    return {
        "step": step,
        "tokens": 16_384 * step,
        "train/loss": 2 + 8 / step + 0.1 * math.sin(step),
        "train/grad_norm": 1 + math.cos(step) / 2,
        "train/lr_multiplier": 1.0,
        "train/tokens_per_second": 14_000.0 + step % 7,
        "train/mfu": 0.4,
        "train/step_seconds": 1.2,
        "train/data_wait_seconds": 0.01,
        "data/position": step // 10,
        "data/row": step % 10,
        "time": 1_760_000_000.0 + step,
        **values,
    }


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    stage = RunFolder(str(tmp_path), "demo").stage("pretrain")
    stage.write_config({"run": "demo", "depth": 4, "tokenizer": None, "fresh": False})
    return stage


def log_steps(folder: StageFolder, records: list[dict[str, object]], last_step: int = 0) -> None:
    logger = MetricsLogger(folder, last_step=last_step)
    for values in records:
        logger.record(values, {"step": values["step"]})
    logger.close()
    for log in logger.logs:
        if log.file is not None:
            log.file.close()


def read(folder: StageFolder) -> str:
    content: bytes = folder.fs.cat_file(folder.path("report.html"))
    return content.decode()


def test_report_parses_and_every_element_is_closed(folder: StageFolder) -> None:
    log_steps(folder, [record(step) for step in range(1, 101)])

    write_report(folder, FACTS)

    page = Page(read(folder))
    assert page.open == []
    assert page.texts["h1"] == ["demo / pretrain"]
    assert page.texts["title"] == ["demo / pretrain"]
    assert ("meta", {"charset": "utf-8"}) in page.elements
    assert "viewport" in [attributes.get("name") for _, attributes in page.elements]


def test_report_asks_nothing_of_the_network_and_runs_no_script(folder: StageFolder) -> None:
    log_steps(folder, [record(step) for step in range(1, 101)])

    write_report(folder, FACTS)

    text = read(folder)
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "base"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        addresses = [attributes.get(name) for name in ("src", "href", "xlink:href")]
        assert all(address is None or address.startswith("#") for address in addresses)
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text


def test_report_shows_facts_config_curves_and_environment(folder: StageFolder) -> None:
    log_steps(folder, [record(step) for step in range(1, 101)])

    write_report(folder, FACTS)

    page = Page(read(folder))
    rows = page.rows()
    assert rows.items() >= {**FACTS.summary, **FACTS.derivation}.items()
    assert rows.items() >= {"depth": "4", "tokenizer": "not set", "fresh": "false"}.items()
    assert rows.items() >= environment().items()
    assert "format_version" not in rows
    assert page.texts["pre"] == [FACTS.resume_command]
    assert len(page.texts["svg"]) == 5
    assert "Nothing was recorded of: validation." in page.texts["main"][0]
    assert "Steps 1 to 100 are recorded, the last on 2025-10-09 at 08:55 UTC." in page.texts["p"]


def test_validation_is_plotted_where_there_is_one(folder: StageFolder) -> None:
    steps = [record(step) for step in range(1, 101)]
    steps[49]["validation/bits_per_byte"], steps[99]["validation/bits_per_byte"] = 1.25, 1.125

    log_steps(folder, steps)
    write_report(folder, FACTS)

    page = Page(read(folder))
    assert "Validation 1.125 at step 100" in page.texts["figcaption"]
    assert "Nothing was recorded" not in page.texts["main"][0]


def test_steps_with_a_loss_of_nan_are_counted(folder: StageFolder) -> None:
    steps = [record(step) for step in range(1, 101)]
    for step in (17, 18, 40):
        steps[step - 1]["train/loss"] = math.nan
    steps[59]["train/loss"] = math.inf

    log_steps(folder, steps)
    write_report(folder, FACTS)

    captions = Page(read(folder)).texts["figcaption"]
    expected = "4 of 100 values are not finite and leave gaps, the first at step 17"
    assert [expected in caption for caption in captions] == [True, False, False, False, False]


def test_a_sample_is_shown_as_it_is_and_stays_inert(folder: StageFolder) -> None:
    prompt, continuation = (
        "<script>alert(1)</script>",
        "\n  <img src=x onerror=alert(1)>\t&amp; \ud83d",
    )
    log_steps(folder, [record(1)])

    write_report(folder, dataclasses.replace(FACTS, samples=[(prompt, continuation)]))

    page = Page(read(folder))
    assert page.texts["blockquote"] == [prompt + continuation.replace("\ud83d", "?")]
    assert not {tag for tag, _ in page.elements} & {"script", "img"}


def test_markup_is_inert_wherever_the_caller_puts_it(folder: StageFolder) -> None:
    bad = '"><script>alert(1)</script>'
    folder.write_config({bad: bad})
    log_steps(folder, [record(1)])

    write_report(folder, ReportFacts(bad, {bad: bad}, {bad: bad}, bad, [(bad, bad)]))

    page = Page(read(folder))
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.texts["h1"] == [bad]
    assert page.texts["pre"] == [bad]
    assert page.rows()[bad] == bad


def test_a_run_of_one_step_has_a_report(folder: StageFolder) -> None:
    log_steps(folder, [record(1)])

    write_report(folder, FACTS)

    page = Page(read(folder))
    assert "Step 1 is recorded, the last on 2025-10-09 at 08:53 UTC." in page.texts["p"]
    assert len(page.texts["svg"]) == 5


def test_a_run_without_metrics_or_config_has_a_report(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "demo").stage("pretrain")

    write_report(folder, FACTS)

    page = Page(read(folder))
    assert "No step was recorded." in page.texts["p"]
    assert "svg" not in page.texts
    assert folder.fs.cat_file(folder.path("loss.png")).startswith(b"\x89PNG")


def test_steps_that_lack_values_have_a_report(folder: StageFolder) -> None:
    log_steps(folder, [{"step": 1}, {"step": 2, "train/loss": 3.5}, {"step": 3}])

    write_report(folder, FACTS)

    page = Page(read(folder))
    assert page.texts["figcaption"] == ["Training loss 3.5 at step 2"]
    assert "Steps 1 to 3 are recorded." in page.texts["p"]


def test_a_resumed_run_shows_each_step_once(folder: StageFolder) -> None:
    log_steps(folder, [record(step, **{"train/loss": 9.0}) for step in range(1, 81)])
    log_steps(folder, [record(step) for step in range(51, 101)], last_step=50)

    write_report(folder, FACTS)

    page = Page(read(folder))
    assert "Steps 1 to 100 are recorded, the last on" in page.texts["p"][0]
    assert f"{record(100)['train/loss']:.4g} at step 100" in page.texts["figcaption"][0]


def test_a_report_of_100_000_steps_is_small_and_quick(folder: StageFolder) -> None:
    with open(folder.path("metrics.jsonl"), "w") as file:
        for step in range(1, 100_001):
            file.write(json.dumps(record(step)) + "\n")

    began = time.perf_counter()
    write_report(folder, FACTS)
    seconds = time.perf_counter() - began

    assert len(read(folder)) < 3e6
    assert seconds < 60  # 2 s on two cores; the rest is for a busy machine


def test_report_is_written_to_any_filesystem() -> None:
    folder = RunFolder(f"memory://reports-{uuid.uuid4().hex}", "demo").stage("pretrain")
    folder.write_config({"depth": 4})
    log_steps(folder, [record(1), record(2)])

    write_report(folder, FACTS)

    assert Page(read(folder)).rows()["depth"] == "4"
    assert folder.fs.cat_file(folder.path("loss.png")).startswith(b"\x89PNG")


def test_writing_again_gives_the_same_report(folder: StageFolder) -> None:
    log_steps(folder, [record(step) for step in range(1, 101)])

    pages = []
    for _ in range(2):
        write_report(folder, FACTS)
        pages.append(read(folder))

    assert pages[0] == pages[1]


def test_nothing_of_the_environments_variables_is_in_the_report(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HOSTNAME", "USER", "LOGNAME"):
        monkeypatch.setenv(name, f"sentinel-{name}")
    monkeypatch.setenv("HOME", "/home/sentinel-home")
    folder.write_config({"storage": "/home/sentinel-home/runs"})
    log_steps(folder, [record(1)])

    write_report(folder, FACTS)

    text = read(folder)
    assert "sentinel" not in text
    assert Page(text).rows()["storage"] == "~/runs"


def test_the_environment_names_no_host_and_no_folder() -> None:
    words = " ".join(environment().values()).replace(",", " ").split()

    assert platform.node() not in words
    assert not [word for word in words if word.startswith(("/", "~"))]
    assert os.path.expanduser("~") not in words


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("s3://user:pass@bucket/runs", "s3://***@bucket/runs"),
        ("s3://AKIA:a/b+c/d@bucket/runs", "s3://***@bucket/runs"),
        ("https://key@host/data", "https://***@host/data"),
        ("--data s3://u:p@b/x --storage gs://k@b", "--data s3://***@b/x --storage gs://***@b"),
        ("https://host/x.parquet?sig=abc&amp=1", "https://host/x.parquet?***"),
        ("s3://bucket/part-??.parquet", "s3://bucket/part-??.parquet"),
        ("https://host/@name/x", "https://host/@name/x"),
        ("me@example.org", "me@example.org"),
    ],
)
def test_credentials_in_addresses_are_not_shown(text: str, safe: str) -> None:
    assert shown(text) == safe


def test_settings_named_after_secrets_are_not_shown(folder: StageFolder) -> None:
    secrets = ("wandb_api_key", "db_password", "client_secret", "hf_token", "storage_access_key")
    folder.write_config({**dict.fromkeys(secrets, "sentinel"), "total_batch_tokens": 16_384})

    write_report(folder, FACTS)

    rows = Page(read(folder)).rows()
    assert {rows[name] for name in secrets} == {"***"}
    assert rows["total_batch_tokens"] == "16384"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_of_the_checkout_and_says_whether_it_was_modified(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *settings, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    package, foreign = tmp_path / "package", tmp_path / "site-packages"
    for place in (package, foreign):
        place.mkdir()
        (place / "__init__.py").write_text("")

    outside = git_commit(str(package))
    git("init")
    git("add", "package")
    git("commit", "-m", "first")
    clean, unknown = git_commit(str(package)), git_commit(str(foreign))
    (package / "__init__.py").write_text("x = 1\n")
    modified = git_commit(str(package))

    assert outside is None
    assert clean == git("rev-parse", "--short", "HEAD").strip()
    assert unknown is None
    assert modified == f"{clean}, modified"


def test_gpus_are_counted_by_name_without_their_serial_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    lines = [f"GPU {i}: NVIDIA H200 (UUID: GPU-1234-{i})" for i in range(8)]
    program.write_text("#!/bin/sh\ncat << 'END'\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with_gpus = gpu_names()
    program.write_text("#!/bin/sh\necho 'GPU 0: stale'\nexit 9\n")
    with_a_broken_driver = gpu_names()

    assert with_gpus == "8 x NVIDIA H200"
    assert with_a_broken_driver == "none"
