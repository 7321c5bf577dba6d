"""Calls of the door to engines, some of which die or are not what they were."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from nanoray.inference.sampling import SamplingParams
from nanoray.serve.backend import Step
from nanoray.serve.deployment import ChatModel
from nanoray.serve.remote_engine import RemoteEngine


class DyingReplica:
    """A handle of Serve whose replica dies: the first time before its first step or after it."""

    def __init__(self, steps_before: int) -> None:
        self.steps_before, self.calls, self.generate = steps_before, 0, self

    def options(self, stream: bool) -> "DyingReplica":
        return self

    def remote(
        self, prompt: list[int], params: SamplingParams, tokenizer_hash: str
    ) -> "DyingReplica":
        self.calls += 1
        self.tokenizer_hash = tokenizer_hash
        return self

    async def __aiter__(self) -> AsyncIterator[Step]:
        for number in range(3):
            if self.calls == 1 and number == self.steps_before:
                raise RayActorError
            yield Step([], f"call {self.calls}", number)

    def cancel(self) -> None:
        pass


async def steps_of(handle: Any) -> list[str]:  # Any: it stands for a handle
    engine = RemoteEngine(handle, "hash").generate([1], SamplingParams(max_tokens=3))
    return [step.replica async for step in engine]


def test_an_answer_that_had_not_begun_when_its_replica_died_is_given_by_another_one() -> None:
    assert asyncio.run(steps_of(DyingReplica(0))) == ["call 2"] * 3


def test_an_answer_that_had_begun_is_not_given_again() -> None:
    handle = DyingReplica(1)
    with pytest.raises(RayActorError):
        asyncio.run(steps_of(handle))

    assert handle.calls == 1
    assert handle.tokenizer_hash == "hash"


def test_a_replica_with_another_tokenizer_refuses_ids_that_mean_something_else_to_it() -> None:
    replica: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(hash="new"), saved=SimpleNamespace(name="chat/sft@20")
    )

    async def ask() -> list[Step]:
        steps = ChatModel.generate(replica, [1], SamplingParams(max_tokens=3), "old")
        return [step async for step in steps]

    with pytest.raises(RuntimeError, match="chat/sft@20 has another tokenizer; restart"):
        asyncio.run(ask())
