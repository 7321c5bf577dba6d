"""Secrets in addresses are found; what only looks like one is left alone."""

import logging

import pytest

from nanoray.credentials import SafeFormatter, without_secrets


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("s3://user:pass@bucket/runs", "s3://***@bucket/runs"),
        ("s3://AKIA:a/b+c/d@bucket/runs", "s3://***@bucket/runs"),
        ("ftp://me:1234@host/x, ftp://me:12@host", "ftp://***@host/x, ftp://***@host"),
        ("http://me:p@host:8000/x", "http://***@host:8000/x"),
        ("https://key@host/data", "https://***@host/data"),
        ("gs://k@bucket", "gs://***@bucket"),
        ("https://host/x.parquet?sig=abc&amp=1", "https://host/x.parquet?***"),
        ("https://h/x.parquet?download&token=abc", "https://h/x.parquet?***"),
        ("HTTPS://abc@h/x", "HTTPS://***@h/x"),
        ("s3://AKIA:7/abc@bucket/runs", "s3://***@bucket/runs"),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer ***"),
        ("see 'https://host/x?token=abc' there", "see 'https://host/x?*** there"),
    ],
)
def test_secrets_are_taken_out_of_addresses(text: str, safe: str) -> None:
    assert without_secrets(text) == safe


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/part-??.parquet",
        "abfs://container@account.dfs.core.windows.net/runs",
        "sftp://me@host/runs",
        "http://127.0.0.1:8000/@name/x",
        "http://[::1]:8000/a@b",
        "https://host/@name/x",
        "me@example.org",
        "s3://bucket/year?/month=12/*.parquet",
        "Give a valid API key: 'Authorization: Bearer KEY'.",
        "basic arithmetic",
        "--run a:b@c",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_a_log_line_and_its_traceback_have_no_secrets() -> None:
    try:
        raise ValueError("https://me:sentinel@host is away")
    except ValueError as error:
        record = logging.LogRecord("a", 30, "a.py", 1, "%s: %s", ("s3://a:sentinel@b", 1), None)
        record.exc_info = (type(error), error, error.__traceback__)

    line = SafeFormatter("%(message)s").format(record)

    assert line.startswith("s3://***@b: 1\n")
    assert "https://***@host is away" in line
    assert "sentinel" not in line
