"""Messages of a client to the ids that the model was trained on.

A client's text never becomes a special token: each part is encoded as ordinary text, and the frames
around it are placed as ids. Tool events of earlier answers become the parts they came from, so that
the model sees its own calls as it made them.
"""

import sys
from typing import Any

from nanoray.config import InputError
from nanoray.serve.call_status import CallStatus
from nanoray.serve.protocol import bad
from nanoray.text.chat import render_for_completion
from nanoray.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
MOST_MESSAGES = 2_000


def chat_prompt(messages: list[Any], tokenizer: Tokenizer) -> list[int]:  # Any: unchecked input
    """Render a conversation whose next turn is the assistant's.

    Raises:
        APIError: what is wrong with the messages, with its place.
    """
    if not messages:
        raise bad("messages", "messages is empty. Give at least one message of the user.")
    if len(messages) > MOST_MESSAGES:
        raise bad("messages", f"messages has {len(messages)}; {MOST_MESSAGES} are the most.")
    checked = [as_message(message, index) for index, message in enumerate(messages)]
    if checked[-1]["role"] != "user":
        raise bad("messages", "The last message must be the user's, to be answered.")
    try:
        answer = {"role": "assistant", "content": ""}
        # Nothing is cut: what does not fit is refused, with the numbers.
        return render_for_completion([*checked, answer], tokenizer, max_tokens=sys.maxsize)
    except InputError as error:
        raise bad("messages", str(error)) from error


def as_message(message: Any, index: int) -> dict[str, Any]:  # Any: unchecked input
    """Check one message, and give it as text/chat.py takes it."""
    place = f"messages[{index}]"
    if not isinstance(message, dict):
        raise bad("messages", f"{place} must be an object with role and content.")
    role = message.get("role")
    if role == "developer":  # OpenAI's newer word for it
        role = "system"
    if role not in ROLES:
        raise bad("messages", f"{place}.role must be one of {', '.join(ROLES)}, not {role!r:.100}.")
    if message.get("tool_calls") or message.get("function_call"):
        raise bad("messages", f"{place} has tool calls, which this model does not make.")
    text = as_text(message.get("content"), place)
    events = message.get("tool_events")
    if role != "assistant" or not events:
        return {"role": role, "content": text}
    return {"role": role, "content": with_tool_parts(text, events, place)}


def as_text(content: Any, place: str) -> str:  # Any: unchecked input
    """Give the text of a content, which may be a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise bad("messages", f"{place}.content must be a text, or a list of text parts.")
    texts = []
    for part in content:
        if (
            not isinstance(part, dict)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise bad("messages", f"{place}.content may hold parts of type text only.")
        texts.append(part["text"])
    return "".join(texts)


def with_tool_parts(text: str, events: Any, place: str) -> list[dict[str, str]]:  # Any: unchecked
    """Put tool events back to where in the text they happened."""
    if not isinstance(events, list):
        raise bad("messages", f"{place}.tool_events must be a list.")
    parts, done = [], 0
    for event in events:
        fields = event if isinstance(event, dict) else {}
        code, output, offset = (fields.get(name) for name in ("input", "output", "offset"))
        if not isinstance(code, str) or not isinstance(output, str | None):
            raise bad("messages", f"{place}.tool_events: input and output must be texts.")
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < done:
            raise bad("messages", f"{place}.tool_events: offset must be a number, rising.")
        parts.append({"type": "text", "text": text[done:offset]})
        is_cut = fields.get("status") == CallStatus.UNFINISHED
        # What is cut off is not told as if it were whole: of 3000 the output may have come to 30.
        if output is not None or not is_cut:
            parts.append({"type": "python", "text": code})
        if output is not None and not is_cut:
            parts.append({"type": "python_output", "text": output})
        done = offset
    parts.append({"type": "text", "text": text[done:]})
    return [part for part in parts if part["text"] or part["type"] != "text"]
