import json

import pytest

from nanoray.config import InputError
from nanoray.ops.doctor_findings import Diagnosis, failed, failed_with, named, ok, skipped, warning

MIXED = Diagnosis(
    (
        ok("nodes", "2 nodes"),
        warning("token", "calls from anybody", "export RAY_AUTH_MODE=token"),
        failed("data", "shard_[7].parquet is missing", "Restore it."),
        skipped("GPUs", "no GPU"),
    ),
    num_nodes=2,
    seconds=12.3,
)


def test_the_verdict_names_what_failed_and_counts_the_rest():
    assert MIXED.has_failed
    assert MIXED.verdict == "1 FAILED: data; 1 warning (2 nodes, 12 s)"


def test_warnings_fail_nothing():
    diagnosis = Diagnosis(MIXED.findings[:2], num_nodes=1, seconds=3.0)

    assert not diagnosis.has_failed
    assert diagnosis.verdict == "nothing failed, 1 warning (1 node, 3 s)"


def test_the_table_shows_every_finding_and_takes_no_text_for_markup():
    text = MIXED.as_text()

    assert "shard_[7].parquet is missing" in text
    assert text.splitlines()[-1] == MIXED.verdict
    assert all(word in text for word in ("FAILED", "warning", "skipped", "Restore it."))
    assert "\x1b" not in text


def test_json_has_the_same():
    facts = json.loads(MIXED.as_json())

    assert (facts["failed"], facts["num_nodes"], facts["seconds"]) == (True, 2, 12.3)
    assert facts["findings"][2] == {
        "check": "data",
        "status": "FAILED",
        "found": "shard_[7].parquet is missing",
        "remedy": "Restore it.",
    }


@pytest.mark.parametrize(("count", "text"), [(1, "0"), (3, "0, 1, 2"), (5, "0, 1, 2 and 2 more")])
def test_a_long_list_is_cut(count: int, text: str):
    assert named(map(str, range(count))) == text


@pytest.mark.parametrize(
    ("error", "found", "remedy"),
    [
        (InputError("--x 0.5 is wrong. Give 1."), "--x 0.5 is wrong.", "Give 1."),
        (OSError(13, "denied"), "[Errno 13] denied", "Look."),
        (OSError(), "OSError", "Look."),
        ("a text alone.", "a text alone.", "Look."),
    ],
)
def test_a_failure_has_a_remedy_its_own_or_another(error, found: str, remedy: str):
    finding = failed_with("data", error, "Look.")

    assert (finding.found, finding.remedy) == (found, remedy)


def test_a_remedy_is_told_without_secrets():
    finding = failed_with("data", "It is wrong. See s3://key:secret@bucket/x instead.", "")
    diagnosis = Diagnosis((finding,), 1, 1.0)

    assert "secret" not in diagnosis.as_json() + diagnosis.as_text()
