"""The CORE bundle, read from a folder or a zip file."""

import shutil
from pathlib import Path

import pytest

from evals.bundle import find_problem, open_bundle
from nanoray.config import DataError, InputError
from tests.evals.small_bundle import items, write_bundle

REAL = Path(__file__).parents[2].parent / "shared/data/eval_bundle.zip"


@pytest.mark.parametrize("inner", ["", "eval_bundle"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_bundle_is_a_folder_or_a_zip_file(tmp_path: Path, inner: str, zipped: bool) -> None:
    write_bundle(tmp_path / "it" / inner)
    address = str(tmp_path / "it")
    if zipped:
        address = shutil.make_archive(str(tmp_path / "it"), "zip", tmp_path / "it")

    bundle = open_bundle(address)
    tasks = bundle.tasks()

    assert [(t.label, t.num_shots, t.baseline) for t in tasks] == [
        ("colors", 2, 0.5),
        ("pronouns", 0, 0.5),
        ("capitals", 1, 0.0),
    ]
    assert [t.delimiter for t in tasks] == ["\nAnswer: ", " ", " "]
    assert bundle.examples(tasks[0]) == items()["a/colors.jsonl"]


def test_a_file_that_is_not_there_is_told_from_one_that_is_broken(tmp_path: Path) -> None:
    bundle = open_bundle(str(write_bundle(tmp_path)))
    colors, pronouns, capitals = bundle.tasks()
    (tmp_path / colors.file).unlink()
    (tmp_path / pronouns.file).write_text('{"continuation": "ran.", "gold": 0}\n')
    (tmp_path / capitals.file).write_text('{"context": "a", "continuation": "b"}\n{"context')

    assert bundle.examples(colors) is None
    with pytest.raises(DataError, match=r"pronouns\.jsonl, line 1, has no 'context_options'"):
        bundle.examples(pronouns)
    with pytest.raises(DataError, match=r"capitals\.jsonl, line 2, is not JSON"):
        bundle.examples(capitals)


def test_what_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is neither a folder nor a zip file"):
        open_bundle(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"has no core\.yaml"):
        open_bundle(str(tmp_path)).tasks()
    write_bundle(tmp_path)
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncolors,50\n")
    with pytest.raises(DataError, match="is no CORE bundle: KeyError\\('pronouns'\\)"):
        open_bundle(str(tmp_path)).tasks()
    (tmp_path / "core.yaml").write_text("icl_tasks: [")
    with pytest.raises(DataError, match="is no CORE bundle"):
        open_bundle(str(tmp_path)).tasks()


@pytest.mark.skipif(not REAL.exists(), reason="needs shared/data/eval_bundle.zip")
def test_the_whole_bundle_has_the_22_tasks() -> None:
    bundle = open_bundle(str(REAL))
    tasks = bundle.tasks()

    assert len(tasks) == 22
    assert sum(len(bundle.examples(task) or []) for task in tasks) == 74_484


@pytest.mark.parametrize(
    ("kind", "example", "problem"),
    [
        ("schema", [1], "is no JSON object"),
        (
            "multiple_choice",
            {"query": "Q", "choices": ["a"], "gold": 1},
            "right answer 1, of 1",
        ),
        ("multiple_choice", {"query": "Q", "choices": "ab", "gold": 0}, "are no list of texts"),
        ("language_modeling", {"context": 7, "continuation": "x"}, "'context' that is no text"),
        ("language_modeling", {"context": "7", "continuation": "x"}, None),
    ],
)
def test_what_cannot_be_asked_is_found(kind: str, example: object, problem: str | None) -> None:
    found = find_problem(kind, example)

    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")


def test_a_damaged_zip_file_is_told_of(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "it")
    address = Path(shutil.make_archive(str(tmp_path / "it"), "zip", folder))
    content = bytearray(address.read_bytes())
    start = content.index(b"core.yaml") + len(b"core.yaml")
    content[start : start + 8] = b"\0" * 8
    address.write_bytes(content)

    with pytest.raises(DataError, match="is damaged"):
        open_bundle(str(address)).tasks()
