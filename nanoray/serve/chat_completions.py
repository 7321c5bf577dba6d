"""/v1/chat/completions: tokens of one conversation to OpenAI's answers."""

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nanoray.serve.answers import ChatChoice, Delta, Json, Usage
from nanoray.serve.backend import ServedModel
from nanoray.serve.generation import Generations
from nanoray.serve.protocol import ChatRequest
from nanoray.serve.tool_events import ToolEvents

ROLE: Json = {"role": "assistant", "content": ""}
"""What a choice of a stream begins with."""


class ChatAnswer:
    """The answer to one chat request, whole or as a stream."""

    def __init__(self, body: ChatRequest, model: ServedModel, prompt: list[int]) -> None:
        self.body = body
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.head = {"id": self.id, "created": int(time.time()), "model": model.id}
        self.usage = Usage(len(prompt))
        self.choices = [
            ChatChoice(index, model.tokenizer, ToolEvents(model.tokenizer, f"{self.id}-{index}"))
            for index in range(body.n or 1)
        ]

    async def whole(self, generations: Generations) -> Json:
        """Wait for the end, and give all of it."""
        async for _, step in generations.merged():
            for output in step.outputs:
                self.usage.count(output)
                self.choices[output.sample].add(output)
        for choice in self.unfinished():
            choice.cut_off()
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [self._choice(choice) for choice in self.choices],
            "usage": self.usage.to_json(),
        }

    async def events(self, generations: Generations) -> AsyncIterator[Json]:
        """Give the chunks of a stream."""
        begun: set[int] = set()
        async for _, step in generations.merged():
            for sample, outputs in step.by_sample().items():
                if sample not in begun:
                    begun.add(sample)
                    yield self._chunk(sample, ROLE)
                delta = Delta()
                for output in outputs:
                    self.usage.count(output)
                    delta.extend(self.choices[sample].add(output))
                for chunk in self._chunks(sample, delta):
                    yield chunk
        for choice in self.unfinished():
            if choice.index not in begun:
                yield self._chunk(choice.index, ROLE)
            for chunk in self._chunks(choice.index, choice.cut_off()):
                yield chunk
        if self.body.include_usage:
            yield {**self._stream_head(), "choices": [], "usage": self.usage.to_json()}

    def unfinished(self) -> list[ChatChoice]:
        """Give the choices whose end has not come."""
        return [choice for choice in self.choices if choice.finish_reason is None]

    def _chunks(self, index: int, delta: Delta) -> Iterator[Json]:
        """Give the chunks for what was added to a choice."""
        if delta.content or delta.tool_events or delta.logprobs:
            yield self._chunk(index, shown(delta), self._logprobs(delta.logprobs))
        if delta.finish_reason:
            yield self._chunk(index, {}, finish_reason=delta.finish_reason)

    def _stream_head(self) -> Json:
        return {**self.head, "object": "chat.completion.chunk"}

    def _chunk(
        self,
        index: int,
        delta: Json,
        logprobs: Json | None = None,
        finish_reason: str | None = None,
    ) -> Json:
        """Give one chunk of a stream."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk: dict[str, Any] = {**self._stream_head(), "choices": [choice]}  # Any: JSON
        if self.body.include_usage:
            chunk["usage"] = None
        return chunk

    def _choice(self, choice: ChatChoice) -> Json:
        """Give one choice of a whole answer."""
        message: Json = {"role": "assistant", "content": choice.content}
        if choice.tool_events:
            message["tool_events"] = choice.tool_events
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, entries: list[Json]) -> Json | None:
        """Give log-probabilities if they were asked for."""
        return {"content": entries} if self.body.logprobs else None


def shown(delta: Delta) -> Json:
    """Give what a chunk shows of an addition."""
    fields: Json = {}
    if delta.content or not delta.tool_events:
        fields["content"] = delta.content
    if delta.tool_events:
        fields["tool_events"] = delta.tool_events
    return fields
