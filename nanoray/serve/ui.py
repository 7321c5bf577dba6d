"""The chat page: Gradio over the public API, with a second page that compares two checkpoints."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanoray.serve.bubbles import as_bubbles, as_messages, error_bubble
from nanoray.serve.chat_client import AnswerError, ChatClient
from nanoray.serve.conversation import Bubbles, Conversation, ExactChatbot
from nanoray.serve.page_requests import OnlyThePage

PATH = "/chat"
EXAMPLES = ["Why is the sky blue?", "What is 12*(3+4)?", "How many r are in strawberry?"]
FONT = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")
CSS = """
footer { display: none !important }
#speed, #speed p { font-size: .85rem; color: var(--body-text-color-subdued); min-height: 1.2em }
.user .prose p { white-space: pre-wrap }
@media (max-width: 640px) { .gradio-container { padding: 8px !important } }
"""
LABEL_JS = """
() => {
  const label = () => {
    for (const log of document.querySelectorAll('[role="log"]')) log.ariaLive = 'polite';
    for (const button of document.querySelectorAll('.submit-button')) button.ariaLabel ||= 'Send';
    for (const button of document.querySelectorAll('.stop-button')) button.ariaLabel ||= 'Stop';
  };
  new MutationObserver(label).observe(document.body, {childList: true, subtree: true});
  label();
}
"""
"""Gradio leaves some buttons without a name, which a screen reader then cannot read out."""

SECURITY_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
"""Gradio's page is made of inline scripts."""


class ChatPage:
    """The page, and what it asks of the API."""

    def __init__(self, client: ChatClient, models: list[str], max_tokens: int) -> None:
        self.client, self.models, self.max_tokens = client, models, max_tokens

    async def respond(
        self,
        message: str,
        history: Bubbles,
        *values: Any,
    ) -> AsyncIterator[tuple[Bubbles, str]]:
        """Answer a message; yields the bubbles of the answer as it grows, and its speed.

        `values` are those of the controls: model, system, temperature, top_k, max_tokens.
        """
        model, system, temperature, top_k, max_tokens = values
        asked = [*history, {"role": "user", "content": message}]
        body = {
            "model": model,
            "messages": as_messages(asked, system),
            "temperature": temperature,
            "top_k": top_k,
        }
        bubbles: Bubbles = []
        try:
            room = await self.client.room(body)
            if max_tokens < room:
                body["max_tokens"] = max_tokens
            async for answer in self.client.answer(body):
                bubbles = as_bubbles(answer.content, answer.tool_events)
                yield bubbles, answer.speed()
        except AnswerError as error:
            yield [*bubbles, error_bubble(str(error))], ""

    async def compare(
        self, message: str, left: Bubbles, right: Bubbles, settings: list[Any]
    ) -> AsyncIterator[tuple[str, Bubbles, Bubbles]]:
        """Answer one message by two models, one after the other, side by side."""
        *models, system, temperature, top_k, max_tokens = settings
        sides = [[*side, {"role": "user", "content": message}] for side in (left, right)]
        for index, model in enumerate(models):
            history = [left, right][index]
            others = (model, system, temperature, top_k, max_tokens)
            async for bubbles, _ in self.respond(message, history, *others):
                shown = list(sides)
                shown[index] = [*sides[index], *bubbles]
                yield "", shown[0], shown[1]
            sides[index] = shown[index]

    def settings(self, *, render: bool) -> list[gr.components.Component]:
        """Build the controls that both pages have."""
        most = self.max_tokens
        return [
            gr.Textbox("", label="System prompt", lines=2, placeholder="...", render=render),
            gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", render=render),
            gr.Slider(1, 200, 50, step=1, label="Top k", render=render),
            gr.Slider(1, most, min(512, most), step=1, label="Max tokens", render=render),
        ]

    def chat_tab(self) -> None:
        """Build the page with one conversation."""
        speed = gr.Markdown("", elem_id="speed", render=False)
        model = gr.Dropdown(self.models, value=self.models[0], label="Model", render=False)
        Conversation(
            self.respond,
            chatbot=ExactChatbot(
                label="Conversation",
                allow_tags=False,
                height="65vh",
                buttons=["copy", "copy_all"],
                group_consecutive_messages=True,
                render=False,
            ),
            textbox=gr.Textbox(
                placeholder="Ask something",
                label="Message",
                submit_btn=True,
                stop_btn=True,
                render=False,
            ),
            additional_inputs=[model, *self.settings(render=False)],
            additional_inputs_accordion=gr.Accordion(
                "Model and sampling", open=False, render=False
            ),
            additional_outputs=[speed],
            editable=True,
            save_history=True,
            examples=[[example] for example in EXAMPLES],
            run_examples_on_click=False,
            concurrency_limit=None,
            flagging_mode="never",
            api_name="chat",
        )
        speed.render()  # type: ignore[no-untyped-call]

    def compare_tab(self) -> None:
        """Build the page with two conversations, side by side."""
        with gr.Row():
            choices = [
                gr.Dropdown(self.models, value=self.models[index % len(self.models)], label=label)
                for index, label in enumerate(("Left model", "Right model"))
            ]
        with gr.Row():
            sides = [
                ExactChatbot(label=label, height="55vh", buttons=["copy"], allow_tags=False)
                for label in ("Left answer", "Right answer")
            ]
        message = gr.Textbox(label="Message to both", placeholder="Ask both", submit_btn=True)
        with gr.Accordion("Sampling", open=False):
            settings = self.settings(render=True)

        async def ask(
            text: str, left: Bubbles, right: Bubbles, *values: Any
        ) -> AsyncIterator[tuple[str, Bubbles, Bubbles]]:
            async for shown in self.compare(text, left, right, list(values)):
                yield shown

        asked = message.submit(
            ask,
            [message, *sides, *choices, *settings],
            [message, *sides],
            concurrency_limit=None,
            api_name="compare",
        )
        with gr.Row():
            gr.Button("Stop").click(None, cancels=[asked])
            gr.ClearButton([message, *sides], value="Clear both")

    def build(self) -> gr.Blocks:
        """Build the whole page."""
        with gr.Blocks(title="nanoray", fill_height=True, analytics_enabled=False) as page:
            with gr.Tab("Chat"):
                self.chat_tab()
            with gr.Tab("Compare"):
                self.compare_tab()
        return page


class NothingFromElsewhere:
    """Forbids browsers to load anything into the page that this server does not serve.

    A model can write the address of an image, and fetching it would tell its host what was said.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the rule to every answer."""

        async def with_rule(message: Message) -> None:
            if message["type"] == "http.response.start":
                rule = (b"content-security-policy", SECURITY_POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), rule]}
            await send(message)

        await self.app(scope, receive, with_rule)


def add_page(app: FastAPI, client: ChatClient, models: list[str], max_tokens: int) -> FastAPI:
    """Put the page into an application, under /chat; the address alone leads there."""
    app.add_api_route("/", lambda: RedirectResponse(PATH))
    app.add_api_route("/favicon.ico", lambda: Response(status_code=204))  # browsers ask for it
    app.add_middleware(NothingFromElsewhere)
    # Innermost: whoever has no key is told that alone.
    app.user_middleware.append(Middleware(OnlyThePage, path=PATH))
    page = ChatPage(client, models, max_tokens).build()
    return gr.mount_gradio_app(
        app,
        page,
        PATH,
        footer_links=[],
        ssr_mode=False,
        show_error=True,
        theme=gr.themes.Default(font=FONT, font_mono=MONO),
        css=CSS,
        js=LABEL_JS,
    )
