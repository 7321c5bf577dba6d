"""A chat in the terminal, over the same API as the page."""

import asyncio
import math
import os
import unicodedata
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from nanoray.config import InputError, require_no_secret
from nanoray.serve.bubbles import NO_OUTPUT, Json
from nanoray.serve.call_status import CallStatus
from nanoray.serve.chat_client import Answer, AnswerError, ChatClient
from nanoray.serve.serve_config import api_keys

REPLACEMENT = "\ufffd"
HELP = "/clear begins anew, /system TEXT, /temperature X, /topk N, /quit; Ctrl-C stops an answer"


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a served model in the terminal."""

    url: str = "http://127.0.0.1:8000"
    """Address of the server; its API key is read from NANORAY_API_KEYS."""
    model: str | None = None
    """Which of the served models; by default the first."""
    prompt: str | None = None
    """Ask this one thing, print the answer, and end."""
    system: str = ""
    """Text that is put before the conversation."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    top_k: int = 50
    """Draw among this many likeliest tokens."""
    max_tokens: int | None = None
    """Longest answer; by default as long as the context allows."""

    def __post_init__(self) -> None:
        require_no_secret(self.url)
        checked_temperature(self.temperature)


def checked_temperature(value: float) -> float:
    """Give a temperature that can be asked for; whether it is too high the server says.

    Raises:
        InputError: it is no finite number.
    """
    if not math.isfinite(value):
        raise InputError(f"The temperature must be a finite number, as 0.8, not {value}.")
    return value


def told(event: Json) -> str:
    """Give a tool call as the terminal shows it."""
    output = NO_OUTPUT if event["output"] is None else event["output"]
    went = "" if event["status"] == CallStatus.DONE else f", {event['status']}"
    return f"[{event['input']} = {output}{went}]"


def printable(text: str) -> str:
    """Give a model's text without what a terminal would obey, such as escape sequences."""
    return "".join(
        REPLACEMENT if unicodedata.category(sign) == "Cc" and sign not in "\n\t" else sign
        for sign in text
    )


class Chat:
    """One conversation."""

    def __init__(self, config: ChatConfig, client: ChatClient, console: Console) -> None:
        self.client, self.console = client, console
        self.system = config.system
        self.settings: Json = {
            "model": config.model,
            "temperature": config.temperature,
            "top_k": config.top_k,
            "max_tokens": config.max_tokens,
        }
        self.messages: list[Json] = []

    async def ask(self, text: str) -> None:
        """Ask something, print the answer as it comes, and keep both.

        Raises:
            AnswerError: there was no answer; the question is not kept either.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.messages, {"role": "user", "content": text}]
        printed, num_events, answer = 0, 0, Answer()
        try:
            async for answer in self.client.answer({**self.settings, "messages": system + asked}):
                for event in answer.tool_events[num_events:]:
                    before = answer.content[printed : event["offset"]]
                    self.console.out(printable(before), end="", highlight=False)
                    self.console.out(printable(told(event)), end="", style="dim", highlight=False)
                    printed = max(printed, event["offset"])
                rest = printable(answer.content[printed:])
                self.console.out(rest, end="", highlight=False)
                printed, num_events = len(answer.content), len(answer.tool_events)
        finally:
            self.console.print()
            if answer.content or answer.tool_events:
                reply = {"role": "assistant", "content": answer.content}
                self.messages = [*asked, {**reply, "tool_events": answer.tool_events}]
        if self.console.is_terminal:
            self.console.print(f"[dim]{answer.speed()}[/dim]")

    def command(self, line: str) -> None:
        """Do what a line that begins with a slash says.

        Raises:
            InputError: it says nothing that is known.
        """
        name, _, value = line[1:].partition(" ")
        try:
            if name == "clear":
                self.messages = []
            elif name == "system":
                self.system = value
            elif name == "temperature":
                self.settings["temperature"] = checked_temperature(float(value))
            elif name == "topk":
                self.settings["top_k"] = int(value)
            else:
                raise InputError(HELP)
        except ValueError as error:
            raise InputError(f"/{name} needs a number, not {value!r}.") from error


def chat(config: ChatConfig) -> None:
    """Talk until /quit or the end of the input.

    Raises:
        InputError: nobody answers there, or the one question got no answer.
    """
    keys = api_keys(os.environ)
    client = ChatClient(config.url, keys[0] if keys else None)
    console = Console()
    talk = Chat(config, client, console)
    try:
        models = asyncio.run(client.models())
        if config.prompt is not None:
            asyncio.run(talk.ask(config.prompt))
            return
    except AnswerError as error:
        raise InputError(str(error)) from error
    console.print(f"[bold]{config.model or models[0]}[/bold]  [dim]{HELP}[/dim]")
    while (line := read_line(console)) is not None:
        try:
            if line.startswith("/"):
                talk.command(line)
            elif line:
                asyncio.run(talk.ask(line))
        except (AnswerError, InputError) as error:
            console.print(f"[red]{escape(str(error))}[/red]")
        except KeyboardInterrupt:
            console.print("[dim]stopped[/dim]")


def read_line(console: Console) -> str | None:
    """Read what the user says; None at /quit, Ctrl-D or Ctrl-C."""
    try:
        line = console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None
    return None if line in ("/quit", "/exit") else line
