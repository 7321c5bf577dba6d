"""Secrets in addresses are found; what only looks like one is left alone."""

import pytest

from nanoray.credentials import without_secrets, words_of


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
        ("https://me:1234/ab@host/x", "https://***@host/x"),
        ("https://first.last:1234?ab@host/x", "https://***@host/x"),
        ("http://me:12#/ab@host:8000/x", "http://***@host:8000/x"),
        ("https://me@corp.com:ab@host/x", "https://***@host/x"),
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
        "http://127.0.0.1:8000/a@b",
        "http://localhost:8000/a@b",
        "http://host:8000/@name/x",
        "http://[::1]:8000/a@b",
        '{"page":"http://host:8000/","by":"me@example.org"}',
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


def test_words_of_a_command_are_looked_at_one_by_one_and_free_text_is_left_out() -> None:
    arguments = ["--data=s3://a", "--pretrain=--depth 1 --data s3://b", "stage", "--prompt"]
    arguments += ["is https://me:p@h/ safe?", "--system=see https://h/x?a=1", "--model", "m"]

    words = list(words_of(arguments))

    assert words == [
        *("--data=s3://a", "--pretrain=--depth", "1", "--data", "s3://b", "stage"),
        *("--prompt", "--model", "m"),
    ]
