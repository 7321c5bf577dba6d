import httpx
import pytest

from nanoray.serve.settings import ApiSettings
from tests.serve.server import serve


@pytest.mark.parametrize("route", ["upload", "process_recording", "run/other", "vibe-edit"])
def test_what_the_page_never_sends_is_not_taken(route: str) -> None:
    with serve(ApiSettings(), page=True) as server:
        files = {"files": ("a.txt", b"x" * 1000)}
        answer = httpx.post(f"{server.url}/chat/gradio_api/{route}", files=files, trust_env=False)

        assert answer.status_code == 404
        assert "takes no files" in answer.json()["error"]["message"]
        assert server.get("/chat/").status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_no_conversation_is_as_long_as_is_refused(is_chunked: bool) -> None:
    parts = [b"[", *[b" " * 100_000] * 100, b"]"]
    content = iter(parts) if is_chunked else b"".join(parts)
    with serve(ApiSettings(), page=True) as server:
        url = f"{server.url}/chat/gradio_api/queue/join"
        headers = {"Content-Type": "application/json"}

        answer = httpx.post(url, content=content, headers=headers, trust_env=False)

        assert answer.status_code == 413
        assert "larger than 2000000 bytes" in answer.json()["error"]["message"]
        assert server.get("/chat/").status_code == 200
