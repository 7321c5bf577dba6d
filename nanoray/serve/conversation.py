"""Gradio's chat with nothing lost: what is sent to the model, kept or edited is what was said.

Gradio strips and unindents each text that it shows, takes the shown text for the history, and keeps
conversations under a name and a secret of their own in each process.
"""

from abc import ABCMeta
from collections.abc import Callable
from typing import Any, cast

import gradio as gr
from gradio.component_meta import ComponentMeta

from nanoray.serve.bubbles import TOOL_TITLE
from nanoray.serve.shown_text import (
    show_as_code,
    show_html_as_text,
    text_of_code,
    text_of_shown,
)

STORAGE_KEY = "nanoray-conversations"
STORAGE_SECRET = "not secret: every page holds it"
"""Gradio encrypts what it keeps in the browser, by a key that it sends along with the page."""

Bubbles = list[dict[str, Any]]  # Any: Gradio's messages
Change = Callable[[str], str]


def changed(bubbles: Any, text: Change, call: Change) -> Bubbles:  # Any: Gradio's messages
    """Change the texts of messages, and the titles of tool calls; all else stays as it is."""
    result = []
    for bubble in bubbles or []:
        content = bubble["content"]
        # A text by itself would be stripped and unindented; a part is taken as it stands.
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [{**part, "text": text(part["text"])} if "text" in part else part for part in parts]
        shown = {**bubble, "content": parts}
        title = (bubble.get("metadata") or {}).get("title") or ""
        if title.startswith(TOOL_TITLE):
            title = TOOL_TITLE + call(title.removeprefix(TOOL_TITLE))
            shown["metadata"] = {**bubble["metadata"], "title": title}
        result.append(shown)
    return result


def show(chatbot: gr.Chatbot, value: Any) -> Any:  # Any: Gradio's messages
    """Give the browser what shows the texts."""
    return gr.Chatbot.postprocess(
        chatbot, cast("Any", changed(value, show_html_as_text, show_as_code))
    )


def read(chatbot: gr.Chatbot, payload: Any) -> Any:  # Any: Gradio's messages
    """Have the texts back from what the browser shows."""
    return changed(gr.Chatbot.preprocess(chatbot, payload), text_of_shown, text_of_code)


# For a class statement Gradio would write an interface file beside the source. Methods of an object
# would not last: Gradio builds it anew when a kept conversation is opened.
ExactChatbot = cast(
    "type[gr.Chatbot]",
    ABCMeta.__new__(
        ComponentMeta,
        "ExactChatbot",
        (gr.Chatbot,),
        {"postprocess": show, "preprocess": read, "is_template": True, "__module__": __name__},
    ),
)
"""A conversation in which the tags of a text are shown, not obeyed: nothing is fetched."""


class Conversation(gr.ChatInterface):
    """Gradio's chat, whose kept conversations every build of the page finds again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: Gradio's
        super().__init__(*args, **kwargs)
        self.saved_conversations.storage_key = STORAGE_KEY
        self.saved_conversations.secret = STORAGE_SECRET

    def _edit_message(self, history: Any, edit_data: gr.EditData) -> Any:  # Any: Gradio's
        """Ask again with an edited text, which Gradio gives as it was shown in the editor."""
        before, state, said = super()._edit_message(history, edit_data)
        return before, state, text_of_shown(cast("str", said))
