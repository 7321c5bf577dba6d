"""Conversations to token ids, with a mask that says which tokens the model learns to write."""

from collections.abc import Mapping, Sequence
from typing import Any

from nanoray.config import InputError
from nanoray.text.tokenizer import Tokenizer

IGNORE_INDEX = -1
"""The target of a position that has no loss."""

Message = Mapping[str, Any]  # Any: content is a string, or a list of parts

PART_FRAMES = {
    "text": None,
    "python": ("<|python_start|>", "<|python_end|>"),
    "python_output": ("<|output_start|>", "<|output_end|>"),
}
"""The special tokens around each kind of part of an assistant message."""


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int = 2048
) -> tuple[list[int], list[int]]:
    """Render a conversation as ids and loss mask (1: a target to learn), cut at `max_tokens`.

    A system message is put before the first user message. Each part is encoded for itself, so that
    no token reaches over the border of two parts. (Wire format: nanochat.)

    Raises:
        InputError: roles do not alternate user, assistant, ...; or content of a wrong kind.
    """
    ids, mask = [tokenizer.bos_id], [0]

    def add(tokens: list[int], learn: int) -> None:
        ids.extend(tokens)
        mask.extend([learn] * len(tokens))

    def special(name: str) -> list[int]:
        return [tokenizer.special_ids[name]]

    for index, message in enumerate(_alternating(messages)):
        role = message["role"]
        add(special(f"<|{role}_start|>"), 0)
        if role == "user":
            add(tokenizer.encode(_text(message, index)), 0)
            add(special("<|user_end|>"), 0)
            continue
        for kind, text in content_parts(message.get("content"), index):
            learn = 0 if kind == "python_output" else 1
            frame = PART_FRAMES[kind]
            tokens = tokenizer.encode(text)
            add(special(frame[0]) + tokens + special(frame[1]) if frame else tokens, learn)
        add(special("<|assistant_end|>"), 1)
    return ids[:max_tokens], mask[:max_tokens]


def check_conversation(messages: Any) -> None:  # Any: unchecked input
    """Refuse a conversation that cannot be learned from.

    Raises:
        InputError: no list of messages, none at all, roles in a wrong order, content that is empty
            or of a wrong kind, or text that has no UTF-8.
    """
    if not isinstance(messages, list | tuple):
        raise InputError(f"A conversation is a list of messages, not {str(messages)[:80]!r}.")
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        # A system message may be empty: it becomes a part of the user's.
        if content is not None and not str(content).strip() and message.get("role") != "system":
            raise InputError(f"Message {index} is empty. Give it a text, or leave it out.")
    alternating = _alternating(messages)
    for index, message in enumerate(alternating, len(messages) - len(alternating)):
        content, role = message.get("content"), message["role"]
        texts = [_text(message, index)] if role == "user" else []
        texts = texts or [text for _, text in content_parts(content, index)]
        if not any(text.strip() for text in texts):
            raise InputError(f"Message {index} is empty. Give it a text, or leave it out.")
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InputError(f"Message {index} has half a surrogate pair in it.") from None


def render_for_completion(
    messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int = 2048
) -> list[int]:
    """Render all but the last message, which the assistant is to write, and open its turn.

    Raises:
        InputError: the last message is not the assistant's.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise InputError("A conversation to be completed must end with an assistant message.")
    ids, _ = render(messages[:-1], tokenizer, max_tokens)
    return [*ids, tokenizer.special_ids["<|assistant_start|>"]]


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """Merge a leading system message into the first user message, and check the order of roles."""
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"Message {index} must have a role and a content, and is {message!r}.")
    merged = list(messages)
    if merged and merged[0].get("role") == "system":
        if len(merged) < 2 or merged[1].get("role") != "user":
            raise InputError("A system message must be followed by a user message.")
        text = f"{_text(merged[0], 0)}\n\n{_text(merged[1], 1)}"
        merged = [{"role": "user", "content": text}, *merged[2:]]
    if not merged:
        raise InputError("A conversation needs at least one message.")
    for place, message in enumerate(merged):
        expected, index = ("user", "assistant")[place % 2], place + len(messages) - len(merged)
        if message.get("role") != expected:
            raise InputError(
                f"Message {index} is of role {message.get('role')!r}, and {expected!r} must stand "
                "there: user and assistant take turns, the user first."
            )
    return merged


def _text(message: Message, index: int) -> str:
    """Give the content of a user's or the system's message."""
    content = message.get("content")
    if not isinstance(content, str):
        raise InputError(
            f"Message {index}: content of role {message['role']!r} must be text, not {content!r}."
        )
    return content


def content_parts(content: Any, index: int) -> list[tuple[str, str]]:  # Any: unchecked input
    """Read the content of a message as parts (kind, text); `index` is its number, for errors.

    Raises:
        InputError: it is neither text nor a list of parts.
    """
    if isinstance(content, str):
        return [("text", content)]
    if not isinstance(content, list | tuple):
        raise InputError(
            f"Message {index}: an assistant's content must be text or a list of parts, "
            f"not {content!r}."
        )
    return [_part(part, index) for part in content]


def _part(part: Any, index: int) -> tuple[str, str]:  # Any: unchecked input
    """Read one part of an assistant message as (kind, text)."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if (
        not isinstance(kind, str)
        or kind not in PART_FRAMES
        or not isinstance(part.get("text"), str)
    ):
        raise InputError(
            f"Message {index} has the part {part!r}. A part has a type ({', '.join(PART_FRAMES)}) "
            "and a text."
        )
    return kind, part["text"]
