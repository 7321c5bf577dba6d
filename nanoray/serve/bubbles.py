"""Answers as the bubbles of a chat page, and bubbles back to the messages of a request."""

import re
from typing import Any

Json = dict[str, Any]  # Any: JSON

CODE = re.compile(r"(```.*?(?:```|$)|`[^`\n]*`)", re.DOTALL)
"""A block or a span of code in Markdown."""

TOOL_TITLE = "python: "
ERROR_TITLE = "The server could not answer"
NO_OUTPUT = "no result"


def as_bubbles(content: str, tool_events: list[Json]) -> list[Json]:
    """Give an answer as messages of Gradio's chat: text, and a closed block for each tool call."""
    bubbles, done = [], 0
    for event in tool_events:
        offset = event["offset"]
        bubbles.append(text_bubble(content[done:offset]))
        title = TOOL_TITLE + event["input"]
        output = NO_OUTPUT if event["output"] is None else event["output"]
        metadata = {"title": title, "id": event["id"], "status": "done"}
        bubbles.append({"role": "assistant", "content": output, "metadata": metadata})
        done = offset
    bubbles.append(text_bubble(content[done:]))
    return [bubble for bubble in bubbles if bubble["content"]] or [text_bubble("")]


def text_bubble(text: str) -> Json:
    """Give a text of the assistant."""
    return {"role": "assistant", "content": text}


def show_html_as_text(text: str) -> str:
    """Let Markdown show the tags of a text instead of obeying them; code stands as it is."""
    return outside_of_code(text, "<", "&lt;")


def text_of_shown(text: str) -> str:
    """Undo `show_html_as_text`."""
    return outside_of_code(text, "&lt;", "<")


def outside_of_code(text: str, old: str, new: str) -> str:
    """Replace something wherever Markdown does not show it as it stands."""
    parts = CODE.split(text)
    return "".join(
        part if index % 2 else part.replace(old, new) for index, part in enumerate(parts)
    )


def error_bubble(problem: str) -> Json:
    """Give what is shown where an answer should be, or goes on."""
    return {"role": "assistant", "content": problem, "metadata": {"title": ERROR_TITLE}}


def as_messages(bubbles: list[Json], system: str = "") -> list[Json]:
    """Give the messages of a request: bubbles of one answer are one message again."""
    messages: list[Json] = [{"role": "system", "content": system}] if system.strip() else []
    for bubble in bubbles:
        title = (bubble.get("metadata") or {}).get("title") or ""
        text = text_of(bubble.get("content"))
        if title == ERROR_TITLE:
            continue
        if bubble["role"] == "user":
            messages.append({"role": "user", "content": text})
            continue
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": "", "tool_events": []})
        answer = messages[-1]
        if title.startswith(TOOL_TITLE):
            answer["tool_events"].append(
                {
                    "input": title.removeprefix(TOOL_TITLE),
                    "output": None if text == NO_OUTPUT else text,
                    "offset": len(answer["content"]),
                }
            )
        else:
            answer["content"] += text
    return without_unanswered(messages)


def without_unanswered(messages: list[Json]) -> list[Json]:
    """Leave out questions that were never answered: after an error the user asks again."""
    return [
        message
        for index, message in enumerate(messages)
        if message["role"] != "user"
        or index + 1 == len(messages)
        or messages[index + 1]["role"] == "assistant"
    ]


def text_of(content: Any) -> str:  # Any: Gradio gives a text or a list of parts
    """Give the text of a bubble."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part.get("text", "") for part in parts if isinstance(part, dict))
