"""What the server tells of itself; that it starts and ends: tests/serve/test_deployment.py."""

import logging

import pytest

from nanoray.logs import FORMAT_VARIABLE
from nanoray.ops.launch import log_format, tell_addresses
from nanoray.serve.serve_config import ServeConfig


@pytest.mark.parametrize("page", [True, False])
def test_the_addresses_are_told(page: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tell_addresses(ServeConfig(run="r", port=8123, page=page))

    assert "http://127.0.0.1:8123/v1" in caplog.text
    assert ("http://127.0.0.1:8123/chat" in caplog.text) == page


@pytest.mark.parametrize(("given", "encoding"), [("text", "TEXT"), ("json", "JSON")])
def test_serve_logs_in_the_format_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, given: str, encoding: str
) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, given)

    assert log_format().encoding == encoding
