"""A request's way through the server, over scripted steps of an engine."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from nanoray.config import InputError
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.sequence import FinishReason, TokenOutput
from nanoray.inference.tools import Part
from nanoray.serve.admission import Admission
from nanoray.serve.backend import ServedModel, Step
from nanoray.serve.errors import APIError
from nanoray.serve.generation import Generation, Generations, sse
from nanoray.serve.server_metrics import ServerMetrics
from nanoray.serve.settings import ApiSettings
from nanoray.text.tokenizer import Tokenizer

PARAMS = SamplingParams(max_tokens=5)


class Script:
    """Steps that a model gives, errors among them; notes when it was closed."""

    def __init__(self, *items: object) -> None:
        self.items, self.closed = items, 0

    async def generate(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Step]:
        try:
            for item in self.items:
                await asyncio.sleep(item if isinstance(item, float) else 0)
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, Step):
                    yield item
        finally:
            self.closed += 1


def step(token: int, end: FinishReason | None = None) -> Step:
    output = TokenOutput(request=0, sample=0, token=token, part=Part.TEXT, finish_reason=end)
    return Step([output], "r", 0.0)


def maker(
    script: Script, metrics: ServerMetrics | None = None, **settings: Any
) -> Callable[[], Generation]:
    model = ServedModel("m", Tokenizer([]), 64, script.generate)
    return partial(
        Generation,
        model,
        [1],
        PARAMS,
        ApiSettings(**settings),
        metrics or ServerMetrics(),
    )


def tokens_of(*scripts: Script, admission: Admission, **settings: Any) -> list[tuple[int, int]]:
    """Run a request of several prompts to its end; gives (prompt, token) as they came."""

    async def run() -> list[tuple[int, int]]:
        generations = Generations(admission, len(scripts))
        await generations.begin([maker(script, **settings) for script in scripts])
        try:
            return [(i, s.outputs[0].token) async for i, s in generations.merged()]
        finally:
            await generations.close()

    return asyncio.run(run())


END = FinishReason.STOP


def test_steps_come_in_order_and_everything_is_given_back() -> None:
    admission, script = Admission(4), Script(step(1), step(2), step(3, END))

    tokens = tokens_of(script, admission=admission)

    assert tokens == [(0, 1), (0, 2), (0, 3)]
    assert (admission.taken, script.closed) == (0, 1)


def test_steps_of_several_prompts_come_as_they_are_made() -> None:
    admission = Admission(4)
    slow, fast = Script(step(1), 0.05, step(2, END)), Script(step(3), step(4, END))

    tokens = tokens_of(slow, fast, admission=admission)

    assert sorted(tokens) == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert tokens[-1] == (0, 2)
    assert (admission.taken, slow.closed, fast.closed) == (0, 1, 1)


@pytest.mark.parametrize(
    ("item", "status"),
    [
        (InputError("bad prompt"), 400),
        (APIError(429, "full"), 429),
        (ConnectionError("gone"), 503),
    ],
)
def test_what_goes_wrong_before_the_first_token_has_a_status(item: object, status: int) -> None:
    admission = Admission(4)
    well, ill = Script(step(1), step(2, END)), Script(item, step(1, END))

    with pytest.raises(APIError) as caught:
        tokens_of(well, ill, admission=admission, first_token_seconds=0.1)

    assert caught.value.status == status
    assert (admission.taken, well.closed, ill.closed) == (0, 1, 1)


def test_a_request_that_does_not_begin_in_time_has_a_status() -> None:
    admission, slow = Admission(4), [Script(1.0, step(1, END)) for _ in range(2)]

    with pytest.raises(APIError) as caught:
        tokens_of(*slow, admission=admission, first_token_seconds=0.1)

    assert caught.value.status == 429
    assert (admission.taken, slow[0].closed, slow[1].closed) == (0, 1, 1)


def test_once_a_prompt_has_begun_the_others_wait_for_its_place_until_the_answers_time_is_up() -> (
    None
):
    admission = Admission(4)

    def batch(**settings: float) -> list[tuple[int, int]]:
        first, second = Script(step(1), step(2, END)), Script(0.5, step(3, END))
        return tokens_of(first, second, admission=admission, first_token_seconds=0.1, **settings)

    assert sorted(batch()) == [(0, 1), (0, 2), (1, 3)]
    with pytest.raises(APIError) as caught:
        batch(answer_seconds=0.2)

    assert (caught.value.status, admission.taken) == (429, 0)


def test_what_has_begun_is_given_and_counted_while_the_others_wait_for_its_place() -> None:
    metrics, waiting = ServerMetrics(), Script(30.0, step(3, END))

    async def run() -> tuple[tuple[int, int], bytes]:
        generations = Generations(Admission(4), 2)
        scripts = (waiting, Script(step(1), step(2, END)))
        await generations.begin([maker(script, metrics=metrics) for script in scripts])
        told = metrics.text()
        async for number, each in generations.merged():
            first = (number, each.outputs[0].token)
            break
        await generations.close()
        return first, told

    first, told = asyncio.run(run())

    assert first == (1, 1)
    assert b'num_requests_running{model_name="m"} 1.0' in told
    assert b'num_requests_waiting{model_name="m"} 1.0' in told
    assert waiting.closed == 1


def test_one_prompt_that_goes_wrong_ends_those_that_still_wait() -> None:
    admission, waiting = Admission(4), [Script(30.0, step(1, END)) for _ in range(2)]

    with pytest.raises(APIError) as caught:
        tokens_of(*waiting, Script(ConnectionError("gone")), admission=admission)

    assert caught.value.status == 503
    assert (admission.taken, [script.closed for script in waiting]) == (0, [1, 1])


def test_prompts_that_are_given_up_while_others_wait_are_all_closed() -> None:
    admission = Admission(4)
    scripts = [Script(step(1), 30.0, step(2, END)) for _ in range(3)]

    async def run() -> None:
        generations = Generations(admission, len(scripts))
        await generations.begin([maker(script) for script in scripts])
        async for _ in generations.merged():
            break
        await asyncio.sleep(0.01)  # now the others wait for their second step
        await generations.close()

    asyncio.run(run())

    assert (admission.taken, [script.closed for script in scripts]) == (0, [1, 1, 1])


class SlowToClose(Script):
    """A model at which it takes a moment to free a place."""

    async def generate(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Step]:
        try:
            yield step(1)
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.02)
            self.closed += 1


def test_a_request_that_is_cancelled_while_it_ends_gives_everything_back() -> None:
    admission, metrics, script = Admission(4), ServerMetrics(), SlowToClose()

    async def run() -> None:
        generations = Generations(admission, 1)
        await generations.begin([maker(script, metrics=metrics)])
        ending = asyncio.create_task(generations.close())
        await asyncio.sleep(0.01)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        await asyncio.sleep(0.05)

    asyncio.run(run())

    assert (admission.taken, script.closed) == (0, 1)
    assert b'num_requests_running{model_name="m"} 0.0' in metrics.text()


def test_what_goes_wrong_later_comes_where_it_happened() -> None:
    admission, script = Admission(4), Script(step(1), ConnectionError("gone"))

    with pytest.raises(APIError, match="replica failed") as caught:
        tokens_of(script, admission=admission)

    assert (caught.value.status, admission.taken) == (503, 0)


@pytest.mark.parametrize("pause", [0.1, 30.0])
def test_after_the_deadline_nothing_more_is_waited_for(pause: float) -> None:
    admission, script = Admission(4), Script(step(1), pause, step(2), step(3, END))

    tokens = tokens_of(script, admission=admission, answer_seconds=0.05)

    assert tokens == [(0, 1)]
    assert (admission.taken, script.closed) == (0, 1)


def test_without_a_place_nothing_is_begun() -> None:
    script = Script(step(1, END))

    with pytest.raises(APIError):
        tokens_of(script, script, admission=Admission(1))

    assert script.closed == 0


def test_a_stream_ends_by_saying_so_after_an_error_too() -> None:
    async def events() -> AsyncIterator[dict[str, object]]:
        yield {"a": "é"}
        raise APIError(503, "gone")

    async def run() -> bytes:
        return b"".join([part async for part in sse(events())])

    written = asyncio.run(run()).decode().split("\n\n")

    assert written[0] == 'data: {"a":"é"}'
    assert '"message":"gone"' in written[1]
    assert written[2:] == ["data: [DONE]", ""]
