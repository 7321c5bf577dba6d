"""What the API answers when it cannot do what was asked: always JSON, in OpenAI's words."""

import json
from typing import Any

from starlette.responses import Response

LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
"""Characters at which `str.splitlines` splits, and which JSON leaves as they are."""


class APIError(Exception):
    """An answer that is an error; `status` is HTTP's."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, param, code, headers)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def __str__(self) -> str:
        return self.message

    @property
    def type(self) -> str:
        """The class of the error, by which clients decide what to raise."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:  # Any: JSON
        """Give the JSON that stands for it, as an answer or as an event of a stream."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """Give the HTTP answer."""
        return json_response(self.body(), self.status, self.headers)


def busy(message: str, retry_after_seconds: int) -> APIError:
    """Say that there is no room now; clients try again by themselves after that time."""
    headers = {"Retry-After": str(retry_after_seconds), "X-Should-Retry": "true"}
    return APIError(429, message, code="rate_limit_exceeded", headers=headers)


def unavailable(message: str, retry_after_seconds: int = 5) -> APIError:
    """Say that the server is not there for new requests, but will be."""
    headers = {"Retry-After": str(retry_after_seconds)}
    return APIError(503, message, code="service_unavailable", headers=headers)


def to_json(value: Any) -> bytes:  # Any: JSON
    """Write JSON as UTF-8; a lone surrogate, which is no character, becomes a question mark.

    What some clients take for the end of a line, and so of an event, is escaped.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(LINE_ENDS).encode("utf-8", "replace")


def json_response(
    value: Any,  # Any: JSON
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    """Answer with JSON."""
    return Response(to_json(value), status, headers, media_type="application/json")
