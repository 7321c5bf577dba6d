"""/v1/completions: tokens of plain prompts to OpenAI's answers."""

import secrets
import time
from collections.abc import AsyncIterator

from nanoray.inference.sequence import TokenLogprobs, TokenOutput
from nanoray.inference.text_stream import TextStream
from nanoray.serve.answers import CompletionLogprobs, Json, Usage, finish_reason
from nanoray.serve.backend import ServedModel
from nanoray.serve.generation import Generations
from nanoray.serve.protocol import CompletionRequest
from nanoray.text.tokenizer import Tokenizer


class CompletionChoice:
    """One continuation of one prompt, as it grows."""

    def __init__(
        self, body: CompletionRequest, tokenizer: Tokenizer, index: int, prompt: str | list[int]
    ) -> None:
        self.body, self.tokenizer, self.index = body, tokenizer, index
        self.prompt = prompt
        self.text = ""
        self.logprobs = CompletionLogprobs(tokenizer)
        self.finish_reason: str | None = None
        self.keeps_tokens = body.max_tokens != 0
        self.is_to_echo = bool(body.echo)

    def add(self, output: TokenOutput) -> str:
        """Take the next token; gives the text that it added."""
        added = ""
        if self.is_to_echo:
            self.is_to_echo = False
            added = self._echo(output)
        if self.keeps_tokens:
            added += output.text
            if output.logprobs is not None:
                self.logprobs.add(output.token, output.logprobs)
        if output.finish_reason is not None:
            reason = finish_reason(output)
            self.finish_reason = reason if self.keeps_tokens else "length"
        self.text += added
        if output.finish_reason is not None:
            self.logprobs.cut(len(self.text))
        return added

    def _echo(self, output: TokenOutput) -> str:
        """Give the prompt before its first token, with what is known of its tokens."""
        known: list[TokenLogprobs | None] = list(output.prompt_logprobs)
        if isinstance(self.prompt, str):
            # <|bos|> was put before it here: clients count the tokens of their text from its start.
            for position, token in enumerate(self.tokenizer.encode(self.prompt)):
                if known:
                    self.logprobs.add(token, known[position + 1] if position else None)
            return self.prompt
        for token, each in zip(self.prompt, known, strict=False):
            self.logprobs.add(token, each)
        self.logprobs.places.end()
        return text_of(self.prompt, self.tokenizer)


def text_of(ids: list[int], tokenizer: Tokenizer) -> str:
    """Decode ids as an answer's tokens are: no character goes on behind a special token."""
    stream, text = TextStream(), ""
    for token in ids:
        in_text = tokenizer.decode_bytes([token])
        text += stream.add(in_text) if in_text else stream.finish()
    return text + stream.finish()


class CompletionAnswer:
    """The answer to one request with any number of prompts, whole or as a stream."""

    def __init__(self, body: CompletionRequest, model: ServedModel, ids: list[list[int]]) -> None:
        self.body, self.model = body, model
        name = f"cmpl-{secrets.token_hex(12)}"
        self.head = {
            "id": name,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.id,
        }
        self.usage = Usage(sum(map(len, ids)))
        self.num_samples = body.n or 1
        self.choices = [
            CompletionChoice(body, model.tokenizer, number * self.num_samples + sample, prompt)
            for number, prompt in enumerate(body.prompts())
            for sample in range(self.num_samples)
        ]

    async def whole(self, generations: Generations) -> Json:
        """Wait for the end, and give all of it."""
        async for number, step in generations.merged():
            for output in step.outputs:
                self._choice_of(number, output).add(output)
        return {
            **self.head,
            "choices": [
                self._shown(choice, choice.text, choice.finish_reason or "length")
                for choice in self.choices
            ],
            "usage": self.usage.to_json(),
        }

    async def events(self, generations: Generations) -> AsyncIterator[Json]:
        """Give the chunks of a stream."""
        more = {"usage": None} if self.body.include_usage else {}
        async for number, step in generations.merged():
            for outputs in step.by_sample().values():
                text = ""
                for output in outputs:
                    choice = self._choice_of(number, output)
                    text += choice.add(output)
                if text or choice.finish_reason or choice.logprobs.tokens:
                    shown = self._shown(choice, text, choice.finish_reason)
                    yield {**self.head, "choices": [shown], **more}
        for choice in self.choices:
            if choice.finish_reason is None:  # there is no more time
                yield {**self.head, "choices": [self._shown(choice, "", "length")], **more}
        if self.body.include_usage:
            yield {**self.head, "choices": [], "usage": self.usage.to_json()}

    def _choice_of(self, number: int, output: TokenOutput) -> CompletionChoice:
        """Find the choice of an output, and count its token if the client gets it."""
        choice = self.choices[number * self.num_samples + output.sample]
        if choice.keeps_tokens:
            self.usage.count(output)
        return choice

    def _shown(self, choice: CompletionChoice, text: str, reason: str | None) -> Json:
        """Give a choice, or what was added to it, as clients see it."""
        asked = self.body.logprobs is not None
        return {
            "index": choice.index,
            "text": text,
            "logprobs": choice.logprobs.take() if asked else None,
            "finish_reason": reason,
        }
