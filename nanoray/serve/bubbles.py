"""Answers as the bubbles of a chat page, and bubbles back to the messages of a request."""

from typing import Any

from nanoray.serve.call_status import CallStatus

Json = dict[str, Any]  # Any: JSON

TOOL_TITLE = "python: "
ERROR_TITLE = "The server could not answer"
NO_OUTPUT = "no result"
WITHOUT_OUTPUT = (CallStatus.FAILED, CallStatus.UNFINISHED)
"""Of a call that went so there may be no output."""


def as_bubbles(content: str, tool_events: list[Json]) -> list[Json]:
    """Give an answer as messages of Gradio's chat: text, and a closed block for each tool call."""
    bubbles, done = [], 0
    for event in tool_events:
        offset = event["offset"]
        bubbles.append(text_bubble(content[done:offset]))
        output = NO_OUTPUT if event["output"] is None else event["output"]
        # To Gradio "done" means a closed block; how the call went is told beside its title.
        metadata = {"title": TOOL_TITLE + event["input"], "id": event["id"], "status": "done"}
        if event["status"] != CallStatus.DONE:
            metadata["log"] = event["status"]
        bubbles.append({"role": "assistant", "content": output, "metadata": metadata})
        done = offset
    bubbles.append(text_bubble(content[done:]))
    told = [bubble for bubble in bubbles if bubble["content"] or "metadata" in bubble]
    return told or [text_bubble("")]


def text_bubble(text: str) -> Json:
    """Give a text of the assistant."""
    return {"role": "assistant", "content": text}


def error_bubble(problem: str) -> Json:
    """Give what is shown where an answer should be, or goes on."""
    return {"role": "assistant", "content": problem, "metadata": {"title": ERROR_TITLE}}


def as_messages(bubbles: list[Json], system: str = "") -> list[Json]:
    """Give the messages of a request: bubbles of one answer are one message again."""
    messages: list[Json] = [{"role": "system", "content": system}] if system.strip() else []
    for bubble in bubbles:
        metadata = bubble.get("metadata") or {}
        title = metadata.get("title") or ""
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
            status = metadata.get("log") or CallStatus.DONE
            is_missing = text == NO_OUTPUT and status in WITHOUT_OUTPUT
            answer["tool_events"].append(
                {
                    "input": title.removeprefix(TOOL_TITLE),
                    "output": None if is_missing else text,
                    "status": status,
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
