"""Answers that are errors."""

import json
import pickle

import pytest

from nanoray.serve.errors import APIError, busy, json_response, to_json, unavailable


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_has_openais_shape(status: int, kind: str) -> None:
    error = APIError(status, "What is wrong.", "max_tokens", "some_code")

    answer = error.response()

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(bytes(answer.body)) == {
        "error": {
            "message": "What is wrong.",
            "type": kind,
            "param": "max_tokens",
            "code": "some_code",
        }
    }
    assert str(error) == "What is wrong."


def test_an_error_crosses_processes_whole() -> None:
    error = APIError(429, "m", "p", "c", {"Retry-After": "2"})

    back = pickle.loads(pickle.dumps(error))

    assert (back.body(), back.status, back.headers) == (error.body(), 429, {"Retry-After": "2"})


def test_whoever_is_refused_for_now_is_told_when_to_come_again() -> None:
    assert busy("full", 3).response().headers["retry-after"] == "3"
    assert busy("full", 3).response().headers["x-should-retry"] == "true"
    assert unavailable("stopping", 7).response().headers["retry-after"] == "7"


def test_what_is_no_character_does_not_break_an_answer() -> None:
    assert to_json({"a": "é\ud800"}) == '{"a":"é?"}'.encode()
    assert json_response({"a": 1}).body == b'{"a":1}'


def test_a_text_with_other_ends_of_lines_stays_one_line_for_every_client() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x1cf é"

    written = to_json({"text": text})

    assert written.decode().splitlines() == [written.decode()]
    assert json.loads(written) == {"text": text}
    assert "é".encode() in written
