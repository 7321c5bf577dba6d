"""What clients may ask for: the bodies of requests, checked, and what they mean to the engine.

Fields that change nothing are accepted (a penalty of 0, `user`); fields that would change the
answer and are not served are refused, so that nobody gets something else than was asked for.
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from starlette.requests import ClientDisconnect, Request

from nanoray.inference.sampling import SamplingParams
from nanoray.serve.errors import APIError

MOST_SAMPLES = 32
MOST_PROMPTS = 256
MOST_STOPS = 4
"""OpenAI's, for chats."""
MOST_COMPLETION_STOPS = 64
"""lm-eval gives up to some twenty."""
MOST_STOP_CHARS = 256
MOST_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's, for /v1/completions."""

MOST_BODY_SECONDS = 60.0
LONG_BYTES = 50_000
"""Encoding so much takes some milliseconds; of the largest body it takes a third of a second."""

UNSERVED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("guided_choice", "allowed_token_ids", "bad_words"), (None, [])),
    **dict.fromkeys(("guided_json", "structured_outputs", "audio"), (None, {})),
    **dict.fromkeys(("guided_regex", "guided_grammar"), (None, "")),
    **dict.fromkeys(("include_stop_str_in_output", "continue_final_message"), (None, False)),
    **dict.fromkeys(("skip_special_tokens", "add_generation_prompt"), (None, True)),
    **dict.fromkeys(("length_penalty", "typical_p"), (None, 1)),
    **dict.fromkeys(("prompt_logprobs", "truncate_prompt_tokens"), (None,)),
    "max_completion_tokens": (None,),  # where max_tokens is the only name
    "function_call": (None, "none", "auto"),
    "modalities": (None, [], ["text"]),
}
"""Fields that OpenAI or vLLM serve and nanoray does not, and the values that change nothing."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Item = TypeVar("Item")
# Else each wrong item of a long list becomes an error, some kilobytes large.
ListOf = Annotated[list[Item], Field(fail_fast=True)]
Args = ParamSpec("Args")
Result = TypeVar("Result")


class Body(BaseModel):
    """What a client sends; numbers as strings, and the like, are refused."""

    model_config = ConfigDict(strict=True)

    _num_bytes: int = PrivateAttr(default=0)
    """Of the JSON that it was read from."""

    async def work(
        self, function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> Result:
        """Work on what the body holds: in a thread if it is long, so that others are answered."""
        if self._num_bytes < LONG_BYTES:
            return function(*args, **kwargs)
        return await asyncio.to_thread(function, *args, **kwargs)

    def check(self) -> None:
        """Refuse what pydantic cannot see.

        Raises:
            APIError: a field has no meaning beside another, or is not supported.
        """


AnyBody = TypeVar("AnyBody", bound=Body)


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = None


class GenerationRequest(Body):
    """What chat and plain completions have in common; the names are OpenAI's and vLLM's."""

    model_config = ConfigDict(extra="allow")

    most_stops: ClassVar[int] = MOST_STOPS

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | ListOf[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    repetition_penalty: Finite | None = None
    min_p: Finite | None = None
    stop_token_ids: ListOf[int] | None = None
    use_beam_search: bool | None = None
    logit_bias: dict[str, Any] | None = None  # Any: only its emptiness counts
    response_format: dict[str, Any] | None = None  # Any: only {"type": "text"} is allowed

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Refuse what would change the answer and is not supported."""
        if self.stream_options is not None and not self.stream:
            raise bad("stream_options", "stream_options has a meaning only with stream: true.")
        for name, neutral in (
            *(("presence_penalty", 0), ("frequency_penalty", 0), ("repetition_penalty", 1)),
            *(("logit_bias", {}), ("min_p", 0), ("stop_token_ids", []), ("use_beam_search", False)),
            *(("response_format", {"type": "text"}),),
        ):
            value = getattr(self, name)
            if value is not None and value != neutral:
                raise unsupported(name, f"{name} is not supported. Leave it out.")
        for name, value in (self.model_extra or {}).items():
            if name in UNSERVED and value not in UNSERVED[name]:
                raise unsupported(name, f"{name} is not supported. Leave it out.")

    def stop_strings(self) -> tuple[str, ...]:
        """Give the texts that end the answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        wanted = tuple(text for text in given if text)
        if len(wanted) > self.most_stops:
            raise bad("stop", f"stop has {len(wanted)} texts, and {self.most_stops} are the most.")
        longest = max(map(len, wanted), default=0)
        if longest > MOST_STOP_CHARS:
            raise bad(
                "stop", f"stop has a text of {longest} characters; {MOST_STOP_CHARS} are the most."
            )
        return wanted

    def sampling(self, max_tokens: int, **others: Any) -> SamplingParams:  # Any: fields of it
        """Give the settings for the engine; a request without a seed draws one."""
        if (self.min_tokens or 0) > max_tokens:
            raise bad(
                "min_tokens", f"min_tokens {self.min_tokens} is more than the {max_tokens} tokens."
            )
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k if self.top_k and self.top_k > 0 else None,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            num_samples=self.n or 1,
            stop=self.stop_strings(),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            **others,
        )


class ChatRequest(GenerationRequest):
    """The body of /v1/chat/completions."""

    messages: list[Any]  # Any: chat_prompt.py checks them, with better sentences
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: list[Any] | None = None  # Any: only their absence is allowed
    functions: list[Any] | None = None  # Any: only their absence is allowed
    tool_choice: str | dict[str, Any] | None = None  # Any: one that asks for a call is refused

    def check(self) -> None:
        """Refuse what pydantic cannot see."""
        super().check()
        if self.max_tokens == 0:
            raise bad("max_tokens", "max_tokens must be at least 1, not 0.")
        if self.top_logprobs and not self.logprobs:
            raise bad("top_logprobs", "top_logprobs has a meaning only with logprobs: true.")
        for name, neutral in (("tools", []), ("functions", []), ("tool_choice", ("none", "auto"))):
            value = getattr(self, name)
            if value and value not in neutral:
                raise unsupported(
                    name, f"{name} is not supported: the model has a calculator of its own."
                )

    @property
    def asked_tokens(self) -> int | None:
        """The longest answer that was asked for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions."""

    most_stops = MOST_COMPLETION_STOPS

    prompt: str | ListOf[str] | ListOf[int] | ListOf[ListOf[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def check(self) -> None:
        """Refuse what pydantic cannot see."""
        super().check()
        if self.suffix:
            raise unsupported("suffix", "suffix is not supported. Leave it out.")
        if self.best_of not in (None, self.n or 1):
            raise unsupported("best_of", f"best_of {self.best_of} must be n, {self.n or 1}.")
        if self.max_tokens == 0 and not self.echo:
            raise bad("max_tokens", "max_tokens must be at least 1, not 0, without echo.")
        if not self.prompts():
            raise bad("prompt", "prompt is an empty list. Give at least one prompt.")
        if len(self.prompts()) > MOST_PROMPTS:
            raise bad(
                "prompt", f"prompt has {len(self.prompts())} prompts; {MOST_PROMPTS} are the most."
            )

    def prompts(self) -> list[str | list[int]]:
        """Give the prompts, of which a list of ids is one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class TokenizeRequest(Body):
    """The body of /tokenize: text, or a conversation to be answered."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None  # Any: chat_prompt.py checks them
    add_special_tokens: bool = True
    """Put `<|bos|>` before a text."""


class DetokenizeRequest(Body):
    """The body of /detokenize."""

    model: str | None = None
    tokens: ListOf[int]


def bad(param: str, message: str, code: str | None = None) -> APIError:
    """Give the error of a field that cannot be used."""
    return APIError(400, message, param, code)


def unsupported(param: str, message: str) -> APIError:
    """Give the error of a field that is known and not served."""
    return APIError(400, message, param, "unsupported_parameter")


async def read_body(request: Request, shape: type[AnyBody], most_bytes: int) -> AnyBody:
    """Read and check the body of a request.

    Raises:
        APIError: it is too large or slow, no JSON, or not of the shape; the message names the
            field.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise APIError(415, f"Content-Type is {kind[:100]!r}, and must be application/json.")
    content = await read_content(request, most_bytes)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise APIError(400, f"The body must be a JSON object, not {type(value).__name__}.")
    try:
        body = shape.model_validate(value)
    except ValidationError as error:
        raise first_problem(error) from error
    except RecursionError as error:
        raise APIError(400, "The body is nested too deeply.") from error
    body.check()
    body._num_bytes = len(content)
    return body


async def read_content(request: Request, most_bytes: int) -> bytes:
    """Read a body; whoever sends too much, or stops half-way, must not keep memory.

    Raises:
        APIError: it is too large, or does not come to its end.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(MOST_BODY_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > most_bytes:
                    raise APIError(413, f"The body is larger than {most_bytes} bytes. Send less.")
    except TimeoutError as error:
        message = f"The body did not come within {MOST_BODY_SECONDS:g} s. Send it again."
        raise APIError(408, message) from error
    except ClientDisconnect as error:  # it hears no answer; any other error is one of the server
        raise APIError(400, "The client left before its body had come to its end.") from error
    return bytes(content)


def first_problem(error: ValidationError) -> APIError:
    """Give the first thing that is wrong with a body."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    places = [str(place) for place in problem["loc"]]
    param = places[0] if places else None
    if problem["type"] == "missing":
        return APIError(400, f"You must give {param}.", param, "missing_required_parameter")
    return APIError(400, f"{'.'.join(places)}: {problem['msg']}.", param, "invalid_value")
