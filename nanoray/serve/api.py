"""The HTTP API: OpenAI's routes, and those that vLLM's clients know, over served models."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from nanoray.inference.sampling import SamplingParams
from nanoray.serve.access import RequireKey
from nanoray.serve.admission import Admission
from nanoray.serve.answers import Json
from nanoray.serve.backend import ServedModel
from nanoray.serve.chat_completions import ChatAnswer
from nanoray.serve.chat_prompt import chat_prompt
from nanoray.serve.errors import APIError, json_response, unavailable
from nanoray.serve.generation import EventStream, Generation, Generations
from nanoray.serve.protocol import (
    DEFAULT_COMPLETION_TOKENS,
    MOST_PROMPTS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
    bad,
    read_body,
)
from nanoray.serve.server_metrics import ServerMetrics
from nanoray.serve.settings import ApiSettings
from nanoray.serve.text_completions import CompletionAnswer
from nanoray.text.tokenizer import SPECIAL_TOKENS, Tokenizer

logger = logging.getLogger(__name__)

MOST_LOGPROBS_IN_ALL = 300_000
"""Of a request; writing so many as JSON takes a second and a half, in which no stream goes on."""
LOOK_SECONDS = 1.0
"""For how long it is believed that an engine works, or does not."""


class Api:
    """The routes, and what they share."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ApiSettings) -> None:
        """Serve some models; the first is the one for requests that name none."""
        self.models, self.settings = models, settings
        self.admission = Admission(settings.most_answers)
        self.metrics = ServerMetrics()
        self._looking, self._looked = asyncio.Lock(), -math.inf
        self._silent: list[str] = []

    def app(self) -> FastAPI:
        """Build the application."""
        app = FastAPI(title="nanoray", docs_url=None, redoc_url=None, openapi_url=None)
        routes: dict[tuple[str, str], Callable[..., object]] = {
            ("GET", "/health"): self.health,
            ("GET", "/metrics"): self.prometheus,
            ("GET", "/v1/models"): self.list_models,
            ("GET", "/v1/models/{model_id:path}"): self.show_model,
            ("POST", "/v1/chat/completions"): self.chat_completions,
            ("POST", "/v1/completions"): self.completions,
            ("POST", "/tokenize"): self.tokenize,
            ("POST", "/detokenize"): self.detokenize,
            ("GET", "/tokenizer_info"): self.tokenizer_info,
        }
        for (method, path), route in routes.items():
            app.add_api_route(path, route, methods=[method], response_model=None)
        app.add_exception_handler(APIError, self.answer_error)
        app.add_exception_handler(HTTPException, self.answer_error)
        app.add_exception_handler(Exception, self.answer_error)
        app.add_middleware(
            RequireKey,
            key_hashes=self.settings.key_hashes,
            cors_origins=self.settings.cors_origins,
        )
        if self.settings.cors_origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=list(self.settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        return app

    async def answer_error(self, request: Request, error: Exception) -> Response:
        """Answer with an error, in OpenAI's shape whatever it is."""
        if isinstance(error, HTTPException):
            where = f"{request.method} {request.url.path}"
            code = "not_found" if error.status_code == 404 else "method_not_allowed"
            headers = dict(error.headers or {})
            error = APIError(error.status_code, f"{where}: {error.detail}.", None, code, headers)
        if not isinstance(error, APIError):
            logger.error("%s failed", request.url.path, exc_info=error)
            error = APIError(500, "The server failed. Its log says more.", code="internal_error")
        self.metrics.refused.labels("", error.status).inc()
        return error.response()

    async def health(self) -> Response:
        """Say whether requests are taken, and would be answered."""
        if self.admission.is_draining:
            return unavailable("The server is about to stop.").response()
        silent = await self.silent_models()
        if silent:
            return unavailable(f"No engine answers for {', '.join(silent)}.").response()
        return json_response({"status": "ok", "models": self.ids()})

    def ids(self) -> list[str]:
        """Give the ids of the models, the first one first; two engines may have one."""
        return list(dict.fromkeys(model.id for model in self.models.values()))

    async def silent_models(self) -> list[str]:
        """Name the models that no engine works for; who asks often is told what was found last."""
        async with self._looking:
            if time.monotonic() - self._looked > LOOK_SECONDS:
                models = list(self.models.values())
                working = await asyncio.gather(*(model.works() for model in models))
                self._silent = [m.id for m, works in zip(models, working, strict=True) if not works]
                self._looked = time.monotonic()
        return self._silent

    async def prometheus(self) -> Response:
        """Give the metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def list_models(self) -> Response:
        """List what can be named as `model`."""
        cards = await asyncio.gather(*(self.card(model) for model in self.models.values()))
        listed: dict[str, Json] = {}
        for card in cards:
            listed.setdefault(card["id"], card)
        return json_response({"object": "list", "data": list(listed.values())})

    async def show_model(self, model_id: str) -> Response:
        """Show one model."""
        return json_response(await self.card(await self.model(model_id)))

    async def card(self, model: ServedModel) -> Json:
        """Give the facts of a model."""
        model.take_up(await model.newest())
        return {
            "id": model.id,
            "object": "model",
            "created": model.created,
            "owned_by": "nanoray",
            "root": model.id,
            "max_model_len": model.context_tokens,
            "step": model.step,
        }

    async def model(self, name: str | None) -> ServedModel:
        """Find a model by its name.

        Raises:
            APIError: there is none of that name.
        """
        models = list(self.models.values())
        if name is None:
            return models[0]
        found = find_model(models, name)
        if found is None:  # an engine may have gone on to the next stage since
            await asyncio.gather(*(self.card(model) for model in models))
            found = find_model(models, name)
        if found is None:
            known = ", ".join(self.ids())
            message = f"The model {name[:200]!r} does not exist. There are: {known}."
            raise APIError(404, message, "model", "model_not_found")
        return found

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation."""
        body = await read_body(request, ChatRequest, self.settings.most_body_bytes)
        model = await self.model(body.model)
        prompt = await body.work(chat_prompt, body.messages, model.tokenizer)
        params = body.sampling(
            room_for(model, len(prompt), body.asked_tokens),
            tools=True,
            num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        answer = ChatAnswer(body, model, prompt)
        return await self.generate(body, model, [(prompt, params)], answer)

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        body = await read_body(request, CompletionRequest, self.settings.most_body_bytes)
        model = await self.model(body.model)
        ids = await body.work(prompt_ids, body.prompts(), model.tokenizer)
        jobs = []
        for prompt in ids:
            asked = None if body.max_tokens is None else max(body.max_tokens, 1)
            room = room_for(model, len(prompt), asked, "prompt")
            if asked is None:
                room = min(room, DEFAULT_COMPLETION_TOKENS)
            score = bool(body.echo) and body.logprobs is not None
            params = body.sampling(room, num_logprobs=body.logprobs, prompt_logprobs=score)
            jobs.append((prompt, params))
        return await self.generate(body, model, jobs, CompletionAnswer(body, model, ids))

    async def generate(
        self,
        body: GenerationRequest,
        model: ServedModel,
        jobs: list[tuple[list[int], SamplingParams]],
        answer: ChatAnswer | CompletionAnswer,
    ) -> Response:
        """Let the model continue prompts, and answer with all of it, or as it comes."""
        check_logprobs(jobs)
        num_samples = [params.num_samples for _, params in jobs]
        generations = Generations(self.admission, num_places(num_samples, self.admission.most))
        await generations.begin(
            [partial(Generation, model, *job, self.settings, self.metrics) for job in jobs]
        )
        if body.stream:
            return EventStream(answer.events(generations), generations)
        try:
            return json_response(await answer.whole(generations))
        finally:
            await generations.close()

    async def tokenize(self, request: Request) -> Response:
        """Encode a text, or a conversation as the model sees it."""
        body = await read_body(request, TokenizeRequest, self.settings.most_body_bytes)
        model = await self.model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad("prompt", "Give either prompt, a text, or messages.")
        if body.messages is not None:
            tokens = await body.work(chat_prompt, body.messages, model.tokenizer)
        else:
            assert body.prompt is not None, "checked"
            begin = [model.tokenizer.bos_id] if body.add_special_tokens else []
            tokens = begin + await body.work(model.tokenizer.encode, body.prompt)
        answer = {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": model.context_tokens,
        }
        return json_response(answer)

    async def detokenize(self, request: Request) -> Response:
        """Decode ids; special tokens by their names."""
        body = await read_body(request, DetokenizeRequest, self.settings.most_body_bytes)
        tokenizer = (await self.model(body.model)).tokenizer
        check_ids(body.tokens, tokenizer.vocab_size, "tokens")
        return json_response({"prompt": tokenizer.decode(body.tokens)})

    async def tokenizer_info(self) -> Response:
        """Give what clients need to use the tokenizer from afar."""
        tokenizer = (await self.model(None)).tokenizer
        info = {
            "tokenizer_class": "nanoray",
            "vocab_size": tokenizer.vocab_size,
            "bos_token": "<|bos|>",
            "eos_token": "<|bos|>",  # a document ends where the next one begins
            "pad_token": None,
            "special_tokens": {name: tokenizer.special_ids[name] for name in SPECIAL_TOKENS},
            "hash": tokenizer.hash,
        }
        return json_response(info)


def find_model(models: list[ServedModel], name: str) -> ServedModel | None:
    """Give the model that has a name now, or else the one that had it."""
    now = (model for model in models if model.id == name)
    return next(now, next((model for model in models if name in model.names), None))


def room_for(
    model: ServedModel, num_prompt: int, asked: int | None, param: str = "messages"
) -> int:
    """Give how many tokens an answer may have; `param` is where its prompt came from.

    Raises:
        APIError: the prompt, or the answer that was asked for, does not fit into the context.
    """
    limit = model.context_tokens
    room = limit - num_prompt
    if room < 1 or (asked is not None and asked > room):
        wanted = f" and {asked} were asked for as answer" if room >= 1 else ""
        raise APIError(
            400,
            f"This model's maximum context length is {limit} tokens; the prompt has "
            f"{num_prompt}{wanted}. Shorten one of them.",
            param if asked is None or room < 1 else "max_tokens",
            "context_length_exceeded",
        )
    return room if asked is None else asked


def num_places(num_samples: list[int], most: int) -> int:
    """Give how many places a request takes, of its answers to each prompt and the most there are.

    A batch of prompts that has all places needs no more: its other answers wait at the engine.
    """
    count = sum(num_samples)
    return count if count > MOST_PROMPTS else max(*num_samples, 0, min(count, most))


def check_logprobs(jobs: list[tuple[list[int], SamplingParams]]) -> None:
    """Refuse a request whose log-probabilities would take seconds to write.

    Raises:
        APIError: it asks for too many.
    """
    count = sum(
        params.num_samples
        * (params.max_tokens + (len(prompt) if params.prompt_logprobs else 0))
        * (1 + params.num_logprobs)
        for prompt, params in jobs
        if params.num_logprobs is not None
    )
    if count > MOST_LOGPROBS_IN_ALL:
        raise bad(
            "logprobs",
            f"The request asks for up to {count:,} log-probabilities, and "
            f"{MOST_LOGPROBS_IN_ALL:,} are the most. Ask for fewer answers, tokens, or logprobs.",
        )


def prompt_ids(prompts: list[str | list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Encode prompts, if they are texts.

    Raises:
        APIError: a prompt is empty, or has ids that the vocabulary does not have.
    """
    ids = [
        [tokenizer.bos_id, *tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    for each in ids:
        if not each:
            raise bad("prompt", "The prompt is empty. Give at least one token.")
        check_ids(each, tokenizer.vocab_size, "prompt")
    return ids


def check_ids(tokens: list[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the vocabulary does not have; `param` is where they came from."""
    wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise bad(param, f"Token id {wrong} is not in the vocabulary of {vocab_size} ids.")
