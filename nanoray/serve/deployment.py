"""The application on Ray Serve: one door with the API and the page, and engines behind it."""

import asyncio
import dataclasses
import logging
import math
import os
import secrets
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import TaskCancelledError
from ray.serve.config import AutoscalingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanoray.inference.cache_size import blocks_that_fit
from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.engine_thread import EngineThread
from nanoray.inference.sampling import SamplingParams
from nanoray.model.gpt import DTYPES
from nanoray.serve.api import Api
from nanoray.serve.backend import ServedModel, Step, engine_steps
from nanoray.serve.chat_client import ChatClient
from nanoray.serve.remote_engine import Handle, RemoteEngine
from nanoray.serve.replica_port import listen_as_its_node
from nanoray.serve.serve_config import ServeConfig, api_keys
from nanoray.serve.settings import ApiSettings, hash_keys
from nanoray.serve.ui import add_page
from nanoray.text.tokenizer import Tokenizer
from nanoray.train.checkpoint_name import STAGES, SavedModel, find_model, find_steps
from nanoray.train.device import own_device, prepare_process, training_dtype

logger = logging.getLogger(__name__)

APPLICATION = "nanoray"
DOOR = "door"
UNLIMITED = 100_000
"""Serve's own limits stand far above ours, whose refusals are in OpenAI's shape."""
HANDED_OVER_PER_SECOND = 300
"""By one engine to all requests; each time costs it and the door a millisecond or two."""
ENGINE_NICENESS = 10
"""Of an engine's threads on CPUs: the door otherwise waits for them when it is to refuse somebody.

Linux gives a thread its own, which those that it starts inherit: the engine's, and torch's.
"""


class ChatModel:
    """A replica: one checkpoint in one engine, which takes up newer ones between two steps."""

    def __init__(self, storage: str, name: str, config: ServeConfig, num_threads: int) -> None:
        listen_as_its_node()
        prepare_process(num_threads)
        device = own_device()
        dtype = DTYPES[config.dtype] if config.dtype else training_dtype(device)
        self.storage, self.name, self.config = storage, name, config
        self.replica = uuid.uuid4().hex
        self.saved = find_model(storage, name)
        self.saved_hash = self.saved.weights_hash()
        self.tokenizer = self.saved.tokenizer()
        model = self.saved.load(dtype, device)
        engine_config = EngineConfig(
            max_sequences=config.max_sequences,
            step_tokens=config.step_tokens,
            num_blocks=blocks_that_fit(model, config.max_sequences, config.cache_gb),
        )
        if device.type == "cpu":
            os.nice(ENGINE_NICENESS)
        engine = Engine(model, self.tokenizer, engine_config)
        self.engine = EngineThread(engine, rate=HANDED_OVER_PER_SECOND)
        logger.info("serving %s on %s in %s", self.saved.name, device.type, dtype)
        if "@" not in name:
            threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """Give what the door must know of the model."""
        return {
            "tokenizer": self.tokenizer.to_json(),
            "context_tokens": self.engine.engine.context_tokens,
            "step": self.saved.step,
            "name": self.saved.name,
        }

    def checkpoint(self) -> str:
        """Name the checkpoint whose weights the engine has now."""
        return self.saved.name

    async def generate(
        self, prompt: list[int], params: SamplingParams, tokenizer_hash: str
    ) -> AsyncIterator[Step]:
        """Continue a prompt, whose ids are of some tokenizer; cancelling the call frees its place.

        Raises:
            RuntimeError: this replica began when the run had another tokenizer than the door has.
        """
        if tokenizer_hash != self.tokenizer.hash:
            raise RuntimeError(f"{self.saved.name} has another tokenizer; restart the server")
        async for step in engine_steps(self.engine, self.replica, prompt, params, self.checkpoint):
            yield step

    async def check_health(self) -> None:
        """Raise if the engine has failed or is stuck: Serve then replaces this replica."""
        if self.engine.failure is not None:
            raise RuntimeError(f"the engine failed: {self.engine.failure!r}")
        silent = self.engine.seconds_since_beat()
        if silent > self.config.stuck_seconds:
            raise RuntimeError(f"the engine has made no step for {silent:.0f} s")

    def _follow(self) -> None:
        """Take up newer checkpoints of the run, as long as the process lives."""
        seen = ""
        while self.engine.failure is None:
            time.sleep(self.config.poll_seconds)
            try:
                stage, steps = find_steps(self.storage, self.name)
                newest = f"{stage}@{steps[-1]} {SavedModel(stage, steps[-1]).weights_hash()}"
                if newest != seen:  # only then are the weights read and verified
                    self._take_up(find_model(self.storage, self.name))
                    seen = newest
            except Exception as error:  # each filesystem has its own errors
                # A run that trains deletes old steps while they are read; the next look is better.
                logger.warning("no newer checkpoint could be read: %s", error)

    def _take_up(self, newest: SavedModel) -> None:
        """Go on with the weights of another checkpoint, if it is another one."""
        weights_hash = newest.weights_hash()  # once: its run may delete the step meanwhile
        if (newest.name, weights_hash) == (self.saved.name, self.saved_hash):
            return
        if STAGES.index(newest.folder.name) < STAGES.index(self.saved.folder.name):
            return  # the stage that is served is being trained anew
        if newest.tokenizer().hash != self.tokenizer.hash:
            logger.warning("%s has another tokenizer; restart to serve it", newest.name)
            return
        if newest.config() != self.engine.engine.model.config:
            logger.warning("%s is a model of another shape; restart to serve it", newest.name)
            return
        weights = newest.weights()
        asyncio.run(self.engine.do(lambda engine: engine.load_weights(weights)))
        self.saved, self.saved_hash = newest, weights_hash
        logger.info("went on with %s", newest.name)


class Door:
    """The ingress: HTTP in, tokens of the engines out."""

    def __init__(self, settings: ApiSettings, engines: dict[str, Handle], page_url: str) -> None:
        """Keep what the API is built of; `page_url` is where the chat page finds it, or empty."""
        listen_as_its_node()
        self.settings, self.engines, self.page_url = settings, engines, page_url
        self.api: Api | None = None
        self.launcher: str | None = None
        self._ending: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Ask every model for its facts, and build what answers HTTP; called by Serve."""
        models = {}
        for name, handle in self.engines.items():
            facts = await handle.facts.remote()
            model_id = name if "@" in name else facts["name"].partition("@")[0]
            tokenizer = Tokenizer.from_json(facts["tokenizer"], name)
            engine = RemoteEngine(handle, tokenizer.hash)
            # By the name that was given: a run and its newest stage have one id, and two engines.
            models[name] = ServedModel(
                model_id,
                tokenizer,
                facts["context_tokens"],
                engine.generate,
                facts["step"],
                engine.newest,
                engine.works,
                {name},
            )
        app = self._build(models)
        app.add_middleware(ClientsMayLeave)
        return app

    def _build(self, models: dict[str, ServedModel]) -> FastAPI:
        """Build the API over models, and the page if there is to be one."""
        if not self.page_url:
            self.api = Api(models, self.settings)
            return self.api.app()
        # The page asks the public API like anyone else, with a key that only this process knows.
        key, settings = secrets.token_urlsafe(32), self.settings
        if settings.key_hashes:
            hashes = (*settings.key_hashes, *hash_keys([key]))
            settings = dataclasses.replace(settings, key_hashes=hashes)
        self.api = Api(models, settings)
        context = min(model.context_tokens for model in models.values())
        client = ChatClient(self.page_url, key)
        return add_page(self.api.app(), client, self.api.ids(), context - 1)

    async def stop(self, launcher: str | None = None) -> int | None:
        """Take no more requests, and end the application after the last answer.

        It ends even if whoever asked for it is killed meanwhile, as `ray job stop` does after 3 s.

        Args:
            launcher: who asks for it; None for whoever has it.

        Returns:
            How many answers are still in the making; None if another has started the server since,
            and it goes on.
        """
        assert self.api is not None, "built before anything is called"
        if launcher and self.launcher and launcher != self.launcher:
            return None
        self.api.admission.is_draining = True
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        return self.api.admission.taken

    async def left(self) -> int | None:
        """Give how many answers are still in the making; None if the server is not to end.

        It only reads: by the next question another job may have started the server anew.
        """
        if self.api is None or not self.api.admission.is_draining:
            return None
        return self.api.admission.taken

    async def resume(self, launcher: str | None = None) -> str | None:
        """Take requests, again if the server was to end: it is this launcher's from now on.

        Returns:
            Whose it was; None if nobody has said, as to a replica that took another one's place.
        """
        before, self.launcher = self.launcher, launcher
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self.api is not None:
            self.api.admission.is_draining = False
        return before

    async def _end(self) -> None:
        """Wait for the answers, of which none takes for ever, and have Serve end the rest."""
        assert self.api is not None, "built before anything is called"
        deadline = time.monotonic() + self.settings.longest_seconds
        while self.api.admission.taken and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        await asyncio.to_thread(serve.delete, APPLICATION, _blocking=False)


class ClientsMayLeave:
    """Tells an application by ASGI's own message that its client has left.

    Serve cancels the task that would have told it, and raises that where the message is waited for.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def receive_until_left() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await self.app(scope, receive_until_left, send)


@dataclass(frozen=True)
class ReplicaShare:
    """What one engine gets."""

    cpus: float
    """Reserved at Ray."""
    gpus: int
    threads: int
    """Of torch."""


def replica_share(config: ServeConfig, cluster: dict[str, float]) -> ReplicaShare:
    """Share a cluster's resources out among the engines: a GPU for each, or else its CPUs.

    CPUs for one engine more are left free: Ray cannot end a process that does not react at all, and
    the engine that takes its place must not wait for what that one holds.
    """
    num_engines = len(config.names()) * config.replica_range()[1]
    cores = os.cpu_count() or 1
    threads = config.cpus_per_replica or max(1, cores // num_engines)
    if cluster.get("GPU", 0) >= 1:
        return ReplicaShare(1, 1, threads)
    share = math.floor(100 * cluster.get("CPU", 1) / (num_engines + 1)) / 100
    return ReplicaShare(min(threads, max(share, 0.01)), 0, threads)


def build_application(
    config: ServeConfig,
    storage: str,
    share: ReplicaShare,
    door_labels: dict[str, str] | None = None,
) -> serve.Application:
    """Put the application together; nothing is started.

    Args:
        config: what is served.
        storage: the address of the runs, from every node.
        share: what each engine gets of the cluster.
        door_labels: of the nodes on which the ingress may run.
    """
    least, most = config.replica_range()
    options: dict[str, Any] = {"num_replicas": least}  # Any: Serve's
    if least < most:
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least,
                max_replicas=most,
                target_ongoing_requests=max(1, config.max_sequences // 2),
            )
        }
    settings = ApiSettings(
        key_hashes=hash_keys(api_keys()),
        cors_origins=config.cors_origins,
        most_answers=most * (config.max_sequences + config.max_waiting),
    )
    engines = {}
    for number, name in enumerate(config.names()):
        deployment = serve.deployment(
            name=f"engine-{number}",
            ray_actor_options={
                "num_cpus": share.cpus,
                "num_gpus": share.gpus,
                "label_selector": config.labels(),
            },
            max_ongoing_requests=UNLIMITED,
            health_check_period_s=2,
            health_check_timeout_s=10,
            graceful_shutdown_timeout_s=settings.longest_seconds,
            **options,
        )(ChatModel)
        engines[name] = deployment.bind(storage, name, config, share.threads)
    door = serve.deployment(
        name=DOOR,
        ray_actor_options={"num_cpus": 0, "label_selector": door_labels or {}},
        max_ongoing_requests=UNLIMITED,
        graceful_shutdown_timeout_s=settings.longest_seconds,
    )(serve.ingress()(Door))
    return door.bind(settings, engines, config.own_url() if config.page else "")
