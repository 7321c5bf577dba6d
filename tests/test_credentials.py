"""Secrets in addresses are found; what only looks like one is left alone."""

import pytest

from nanoray.credentials import without_secrets


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
