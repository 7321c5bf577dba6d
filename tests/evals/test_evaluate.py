"""`jobs/evaluate.py` as its user runs it."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evals.evaluate import EvaluateConfig, find_folder, find_subjects, measure, result_of
from evals.exam_plan import ExamConfig, plan_exams
from evals.run import Crew, Marks
from evals.saved_results import read_reports
from nanoray.config import InputError
from nanoray.storage import RunFolder
from nanoray.task import Grade
from tests.chat_run import save_chat_run
from tests.evals.local_hub import local_hub
from tests.evals.model_folder import write_model_folder
from tests.evals.small_bundle import write_bundle
from tests.running import Cluster, run_job
from tests.saved_model import save_model
from tests.support import tiny_gpt, tiny_tokenizer

BUNDLE = Path(__file__).parents[2].parent / "shared/data/eval_bundle.zip"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one whose model knows some conversations, and one that knows nothing."""
    folder = tmp_path_factory.mktemp("runs")
    save_chat_run(folder, steps=(10, 20))
    tokenizer = tiny_tokenizer(1500)
    shape: dict[str, Any] = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 32}
    model = tiny_gpt(vocab_size=tokenizer.vocab_size, max_seq_len=512, **shape)
    save_model(RunFolder(str(folder), "base").stage("pretrain"), model, tokenizer)
    return folder


def test_a_result_that_is_known_is_reported_as_the_plan_has_it(
    storage: Path, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path)
    plan = plan_exams(ExamConfig(tasks="colors", eval_bundle=str(bundle)))
    crew = Crew(1, gpus_each=0, cpus_each=1, threads=1)
    [subject] = find_subjects(EvaluateConfig(run="base"), str(storage))
    [colors] = plan.exams
    marks = Marks(colors, {index: Grade(index % 2 == 0) for index in range(24)})
    subject.results({**plan.settings, "dtype": "float32"}).save(result_of(marks, plan))
    text = (bundle / "eval_meta_data.csv").read_text()
    changed_text = text.replace("colors,50", "colors,20") + "cities,0\n"
    (bundle / "eval_meta_data.csv").write_text(changed_text)
    text = (bundle / "core.yaml").read_text()
    (bundle / "core.yaml").write_text(text.replace("label: capitals", "label: cities"))
    changed = plan_exams(ExamConfig(tasks="colors", eval_bundle=str(bundle)))

    [task] = measure(subject, changed, "float32", crew).tasks

    assert task.baseline == 0.2
    assert task.suite == ("colors", "pronouns", "cities")
    assert task.source == changed.sources["colors"] != plan.sources["colors"]
    shutil.rmtree(storage / "base/pretrain/evals")


def test_all_that_decides_the_answers_of_a_folder_tells_its_results_apart(tmp_path: Path) -> None:
    folder, seen = write_model_folder(tmp_path / "m"), set()
    (folder / "README.md").write_text("1")

    def weights() -> str:
        return find_folder(str(tmp_path), str(folder)).weights

    first = weights()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        text = (folder / name).read_text()
        (folder / name).write_text(text + " ")
        seen.add(weights())
        (folder / name).write_text(text)
    (folder / "README.md").write_text("2")
    again = weights()
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")

    assert len(seen | {first, weights()}) == 6
    assert again == first
    results = find_folder(str(tmp_path), str(folder)).results({"dtype": "float32"})
    assert results.settings["transformers"] == importlib.metadata.version("transformers")


def evaluate(cluster: Cluster, storage: Path, *flags: object) -> tuple[int, str]:
    bundle = write_bundle(storage / "bundle")
    given = flags if "--eval-bundle" in flags else ("--eval-bundle", bundle, *flags)
    return run_job("evaluate.py", "--storage", storage, *given, env=cluster.environment())


@pytest.mark.slow
@pytest.mark.cluster
def test_results_are_kept_and_not_measured_again(ray_cluster: Cluster, storage: Path) -> None:
    code, output = evaluate(ray_cluster, storage, "--run", "base", "--max-per-task", 8)
    again = evaluate(ray_cluster, storage, "--run", "base", "--step", 10, "--max-per-task", 8)

    assert code == 0, output
    assert "colors: " in output
    assert "8 of 24, a sample" in output
    assert output.splitlines()[-1].startswith("CORE")
    assert again[0] == 0
    assert "colors: " not in again[1]
    assert again[1].splitlines()[-1] == output.splitlines()[-1]
    stage = RunFolder(str(storage), "base").stage("pretrain")
    [report] = read_reports(stage)
    assert report.model == "base/pretrain@10"
    assert report.settings["dtype"] == "float32"
    [table] = Path(stage.path("evals/step_000010")).glob("*.csv")
    assert table.read_text().splitlines()[-1].startswith("CORE ")


@pytest.mark.slow
@pytest.mark.cluster
def test_a_published_model_is_measured_by_the_same_code(
    ray_cluster: Cluster, storage: Path, tmp_path: Path
) -> None:
    folder = write_model_folder(tmp_path / "published")

    code, output = evaluate(ray_cluster, storage, "--hugging-face", folder)
    again = evaluate(ray_cluster, storage, "--hugging-face", folder)

    assert code == 0, output
    assert output.splitlines()[-1].startswith("CORE ")
    assert again[1].splitlines()[-1] == output.splitlines()[-1]
    assert "colors: " not in again[1]
    assert list((storage / ".evals").glob("published-*/core-*.csv"))


@pytest.mark.slow
@pytest.mark.cluster
def test_two_checkpoints_are_compared(ray_cluster: Cluster, storage: Path) -> None:
    flags = ("--compare", "chat@10", "chat@20", "--tasks", "core,arc-easy", "--max-per-task", 9)
    code, output = evaluate(ray_cluster, storage, *flags, "--hub-dir", local_hub())

    assert code == 0, output
    lines = output.splitlines()
    assert "A  chat/sft@10" in lines
    assert "B  chat/sft@20" in lines
    [arc] = [line for line in lines if line.startswith("ARC-Easy  ")]
    assert arc.split()[3] == "+0.0000"  # the same weights
    assert lines[-1].startswith("CORE")


@pytest.mark.cluster
@pytest.mark.skipif(not BUNDLE.exists(), reason="needs shared/data/eval_bundle.zip")
def test_all_of_core_is_the_same_for_any_batch_and_crew(
    ray_cluster: Cluster, storage: Path
) -> None:
    found = []
    for batch_size, num_actors in ((1, 1), (32, 2)):
        shutil.rmtree(storage / "base/pretrain/evals", ignore_errors=True)
        flags = ("--run", "base", "--max-per-task", 60, "--json", "--eval-bundle", BUNDLE)
        crew = ("--batch-size", batch_size, "--num-actors", num_actors)
        code, output = evaluate(ray_cluster, storage, *flags, *crew)
        assert code == 0, output
        [report] = json.loads(output[output.index("[\n") :])
        found.append({task["name"]: task["outcomes"] for task in report["tasks"]})

    assert len(found[0]) == 22
    assert sum(map(len, found[0].values())) == 21 * 60 + 32
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.cluster
def test_what_cannot_be_measured_is_said_in_one_line(ray_cluster: Cluster, storage: Path) -> None:
    wrong = {
        ("--run", "nowhere"): "has no checkpoint",
        ("--run", "base", "--tasks", "coler"): "coler is no task",
        ("--run", "base", "--step", "77"): "has no checkpoint of step 77",
        ("--run", "base", "--eval-bundle", "nothing.zip"): "neither a folder nor a zip file",
        ("--run", "base", "--tasks", "chat", "--hub-dir", "nohub"): "nohub",
        ("--hugging-face", "nomodel"): "nomodel holds no Hugging Face model",
    }
    for flags, said in wrong.items():
        code, output = evaluate(ray_cluster, storage, *flags)

        assert code == 2, output
        assert said in output.splitlines()[-1], output


@pytest.mark.cluster
def test_a_vocabulary_that_is_not_the_checkpoints_is_refused(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    folder = RunFolder(str(tmp_path), "r").stage("pretrain")
    save_model(folder, tiny_gpt(vocab_size=tokenizer.vocab_size), tokenizer)
    Path(folder.run.tokenizer_address).write_text(json.dumps(tiny_tokenizer(90).to_json()))

    code, output = evaluate(ray_cluster, tmp_path, "--run", "r")

    assert code == 2
    assert "r/pretrain@10 was trained with" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "Give one of --run RUN, --hugging-face FOLDER and --compare A B"),
        ({"run": "a", "compare": ("a", "b")}, "Give one of"),
        ({"run": "a@5", "step": 7}, "--step 7 belongs to a --run without @step"),
        ({"run": "a", "dtype": "fp8"}, "--dtype fp8 is unknown"),
        ({"run": "a", "batch_size": 0}, "--batch-size 0 is too small"),
        ({"run": "a b/sft"}, "--run 'a b' cannot name a folder"),
    ],
)
def test_settings_without_a_meaning_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EvaluateConfig(**fields)  # type: ignore[arg-type]
