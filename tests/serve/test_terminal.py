"""A chat in the terminal, as its user sees it."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nanoray.config import InputError
from nanoray.serve.chat_client import Answer, AnswerError, ChatClient
from nanoray.serve.terminal import Chat, ChatConfig
from tests.chat_run import EMOJI, WEATHER
from tests.http_server import serving
from tests.serve.server import LocalServer

JOB = Path(__file__).parents[2] / "jobs" / "chat.py"


def make_chat(url: str, **fields) -> tuple[Chat, io.StringIO]:
    text = io.StringIO()
    config = ChatConfig(url=url, temperature=0, **fields)
    return Chat(config, ChatClient(url), Console(file=text, width=200)), text


def test_an_answer_is_printed_and_kept(server: LocalServer) -> None:
    chat, text = make_chat(server.url)

    asyncio.run(chat.ask("Show me emoji"))

    assert text.getvalue() == EMOJI + "\n"
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_an_answer_is_printed_as_it_is_but_for_what_a_terminal_would_obey() -> None:
    pieces = ["f", "\\", "(x", "\\", ") :smile: [bold]", "x" * 300, "\n", "\x1b]0;owned\a", "é"]
    said = [Answer("".join(pieces[: count + 1])) for count in range(len(pieces))]

    class Told:
        async def answer(self, body: object) -> AsyncIterator[Answer]:
            for answer in said:
                yield answer

    text = io.StringIO()
    told: Any = Told()
    chat = Chat(ChatConfig(), told, Console(file=text, width=80))
    asyncio.run(chat.ask("Hi"))

    shown = "f\\(x\\) :smile: [bold]" + "x" * 300 + "\n\ufffd]0;owned\ufffdé\n"
    assert text.getvalue() == shown
    assert chat.messages[-1]["content"] == "".join(pieces)


def test_a_tool_call_is_shown_where_it_happened(server: LocalServer) -> None:
    chat, text = make_chat(server.url)

    asyncio.run(chat.ask("What is 12*(3+4)?"))

    assert text.getvalue() == "Let me see. [12*(3+4) = 84]It is 84.\n"


def test_an_answer_that_is_cut_off_in_a_call_is_kept_as_what_it_is(server: LocalServer) -> None:
    kept = []
    for most in range(1, 24):
        chat, text = make_chat(server.url, max_tokens=most)
        asyncio.run(chat.ask("What is 12*(3+4)?"))
        for event in chat.messages[1]["tool_events"] if chat.messages else []:
            whole = event["output"] == "84" and event["status"] == "done"
            assert whole or event["status"] == "unfinished"
            assert whole or ", unfinished]" in text.getvalue()
            kept.append(event["output"])

    assert kept[-1] == "84"
    assert "8" in kept


@pytest.mark.parametrize(
    ("content", "offset", "shown"),
    [("", 0, "[1+1 = 2]\n"), ("Let me see. It is 2.", 12, "Let me see. [1+1 = 2]It is 2.\n")],
)
def test_a_call_is_shown_where_it_happened_though_all_comes_at_once(
    content: str, offset: int, shown: str
) -> None:
    event = {"id": "a", "input": "1+1", "output": "2", "offset": offset, "status": "done"}
    delta = {"content": content, "tool_events": [event]}
    choice = {"delta": delta, "finish_reason": "length"}

    class OneCall(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            chunk = json.dumps({"choices": [choice]})
            self.wfile.write(f"data: {chunk}\n\ndata: [DONE]\n\n".encode())

        def log_message(self, *_: object) -> None: ...

    with serving(OneCall) as url:
        chat, text = make_chat(url)
        asyncio.run(chat.ask("one and one?"))

    assert text.getvalue() == shown
    assert chat.messages[1] == {"role": "assistant", "content": content, "tool_events": [event]}


def test_a_question_without_answer_is_not_kept() -> None:
    chat, _ = make_chat("http://127.0.0.1:9")

    with pytest.raises(AnswerError):
        asyncio.run(chat.ask("hello"))

    assert chat.messages == []


def test_commands_change_what_is_asked() -> None:
    chat, _ = make_chat("http://127.0.0.1:9")
    chat.messages = [{"role": "user", "content": "x"}]

    for line in ("/system be kind", "/temperature 0.5", "/topk 7", "/clear"):
        chat.command(line)

    assert (chat.system, chat.messages) == ("be kind", [])
    assert (chat.settings["temperature"], chat.settings["top_k"]) == (0.5, 7)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/temperature hot", "needs a number, not 'hot'"),
        ("/temperature nan", "must be a finite number, as 0.8, not nan"),
        ("/temperature -inf", "must be a finite number, as 0.8, not -inf"),
        ("/what", "/clear begins"),
    ],
)
def test_commands_that_say_nothing_are_explained(line: str, said: str) -> None:
    chat, _ = make_chat("http://127.0.0.1:9")

    with pytest.raises(InputError, match=said):
        chat.command(line)
    assert chat.settings["temperature"] == 0


def test_a_temperature_that_is_no_number_is_refused_at_the_start() -> None:
    with pytest.raises(InputError, match="not nan"):
        ChatConfig(temperature=float("nan"))


def run_job(*arguments: str, say: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(JOB), *arguments],
        input=say,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_job_answers_one_question(server: LocalServer) -> None:
    done = run_job("--url", server.url, "--temperature", "0", "--prompt", "What color is the sky?")

    assert (done.returncode, done.stdout) == (0, WEATHER + "\n")


def test_the_job_talks_until_the_input_ends(server: LocalServer) -> None:
    said = "What color is the sky?\n/what\n/quit\n"

    done = run_job("--url", server.url, "--temperature", "0", say=said)

    assert done.returncode == 0
    assert WEATHER in done.stdout
    assert "/clear begins anew" in done.stdout


def test_the_job_says_in_one_line_that_nobody_is_there() -> None:
    done = run_job("--url", "http://127.0.0.1:9", "--prompt", "hello")

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "The server at http://127.0.0.1:9 does not answer" in done.stderr
