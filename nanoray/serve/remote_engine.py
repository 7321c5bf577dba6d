"""The door's side of an engine: calls to whichever replica Serve chooses."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from nanoray.inference.sampling import SamplingParams
from nanoray.serve.backend import Step

logger = logging.getLogger(__name__)

Handle = DeploymentHandle[Any]  # Any: of whichever class
GENERATE_TRIES = 3
CHECK_TRIES, CHECK_SECONDS = 2, 2.0
"""With several replicas, one that is stuck must not make the server seem to be."""


class RemoteEngine:
    """An engine behind a handle of Serve, which chooses the replica."""

    def __init__(self, handle: Handle, tokenizer_hash: str) -> None:
        """Keep the handle, and the hash of the tokenizer that prompts are encoded by."""
        self._handle, self._generate = handle, handle.options(stream=True).generate
        self._tokenizer_hash = tokenizer_hash

    async def generate(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Step]:
        """Yield what each step brings; closing this ends the call over there.

        A replica that dies before it has answered anything is no loss: another one begins.
        """
        for retries_left in reversed(range(GENERATE_TRIES)):
            has_begun = False
            response: Any = self._generate.remote(  # Any: Serve types no streams
                prompt, params, self._tokenizer_hash
            )
            try:
                async for step in response:
                    has_begun = True
                    yield step
                return
            except RayActorError:
                if has_begun or not retries_left:
                    raise
                logger.warning("a replica died before its answer began; another one is asked")
            finally:
                response.cancel()

    async def newest(self) -> str | None:
        """Ask a replica of which checkpoint its weights are; None if it does not answer."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                checkpoint: str = await self._handle.checkpoint.remote()
        except Exception as error:  # of the replica, or of the way to it
            logger.warning("an engine does not tell its checkpoint: %r", error)
            return None
        return checkpoint

    async def works(self) -> bool:
        """Say whether a replica answers that its engine works; one that does not is not all."""
        for _ in range(CHECK_TRIES):
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._handle.check_health.remote()
                return True
            except Exception as error:  # of the replica, or of the way to it
                logger.warning("an engine does not work: %r", error)
        return False
