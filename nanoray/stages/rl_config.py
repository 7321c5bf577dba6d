"""What reinforcement learning is told, and what is decided where nothing was said."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import tyro

from nanoray.config import (
    InputError,
    RunConfig,
    flag,
    identity,
    require_checkpoint_name,
    require_positive,
)
from nanoray.inference.engine import EngineConfig
from nanoray.model.gpt import GPTConfig
from nanoray.rl.rollout import RolloutConfig
from nanoray.stages.finetune_config import PROMPTS
from nanoray.stages.pretrain_config import (
    batch_for,
    optimizer_config,
    schedule,
    warmdown_ratio,
)
from nanoray.stages.training_job import Recipe
from nanoray.train.checkpoint_name import SavedModel

BLOCK_TOKENS = 16
MOST_BETWEEN_VALIDATIONS = 60
"""Steps. (nanochat 6.3)"""
MOMENTUM = 0.95
"""Muon's, from the first step on. (nanochat 6.3)"""


@dataclass(frozen=True, kw_only=True)
class RLConfig(RunConfig):
    """Reinforce what a model answers rightly: REINFORCE, with the mean of a group as baseline."""

    from_: Annotated[str | None, tyro.conf.arg(name="from")] = identity()
    """RUN[/stage][@step] whose weights to begin with; by default the stage before in this run."""
    tasks: str = identity("gsm8k")
    """Whose training questions are asked: gsm8k, spellingbee, arithmetic, with commas between."""
    task_size: int | None = identity()
    """Questions of a task that is made up; by default the task's own number."""
    examples_per_step: int = identity(16)
    """Questions in a step, over all workers."""
    num_samples: int = identity(16)
    """Answers to each question: the group whose mean reward is the baseline."""
    max_new_tokens: int = identity(256)
    """Most tokens of an answer."""
    temperature: float = identity(1.0)
    """At which answers are drawn."""
    top_k: int | None = identity(50)
    """Answers are drawn among this many most likely tokens; 0 for all."""
    epochs: float = identity(1.0)
    """How often each question is asked, unless --num-steps says how long the stage is."""
    lr_fraction: float = identity(0.05)
    """Factor on all learning rates."""
    rollout_workers: int = 0
    """Actors that draw answers, each on a GPU of its own where there are GPUs; 0: the trainers."""
    rollout_sequences: int = 64
    """Answers that are drawn at once by each engine."""
    max_staleness: int = identity(0)
    """Steps by which the weights that draw answers may be older than those that learn."""
    most_importance: float = identity(2.0)
    """Bound on the factor that corrects for the age of the weights that drew an answer."""
    validation_questions: int = 400
    """Held-out questions by which pass@k is measured."""
    validation_samples: int = 8
    """Answers to each of them."""
    hub_dir: str | None = None
    """Folder that stands for the Hugging Face hub: ORG/NAME/CONFIG/SPLIT.parquet."""
    words: str | None = None
    """Words to spell: a file, or "embedded"; by default the public list is fetched."""
    identity_file: str | None = None
    """Text file that says who the model is; by default it introduces nanoray."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_checkpoint_name("--from", self.from_)
        for name in (
            "task_size",
            "examples_per_step",
            "max_new_tokens",
            "rollout_sequences",
            "validation_questions",
            "validation_samples",
        ):
            require_positive(name, getattr(self, name))
        require_positive("num_samples", self.num_samples, least=2)
        for name in ("rollout_workers", "max_staleness", "top_k"):
            require_positive(name, getattr(self, name), least=0)
        for name in ("epochs", "lr_fraction", "temperature", "most_importance"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{flag(name)} {getattr(self, name):g} must be above 0.")
        if self.max_staleness and not self.rollout_workers:
            raise InputError(
                f"--max-staleness {self.max_staleness} needs --rollout-workers: the trainers "
                "themselves cannot draw answers while they learn."
            )

    @property
    def rows_per_step(self) -> int:
        """Answers that are learned from in a step."""
        return self.examples_per_step * self.num_samples

    def rollout(self, *, is_held_out: bool) -> RolloutConfig:
        """Say how answers are drawn."""
        return RolloutConfig(
            num_samples=self.validation_samples if is_held_out else self.num_samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k or None,
            seed=self.seed,
        )

    def engine(self, model: GPTConfig) -> EngineConfig:
        """Say how much an engine does at once."""
        # As much again for the prompt; where that is too little, the engine makes some wait.
        tokens = min(model.max_seq_len, 2 * self.max_new_tokens)
        blocks = self.rollout_sequences * -(-tokens // BLOCK_TOKENS)
        whole = -(-model.max_seq_len // BLOCK_TOKENS)
        return EngineConfig(
            max_sequences=self.rollout_sequences,
            step_tokens=max(512, self.rollout_sequences),
            block_size=BLOCK_TOKENS,
            num_blocks=1 + max(blocks, whole),
        )


def decide(config: RLConfig, model: GPTConfig, *, on_gpu: bool, dtype: str) -> RLConfig:
    """Fill in what was left open but the number of steps, which the questions decide."""
    c = config
    # A rank's rows are filled up to whole batches: any number of rows in a batch will do.
    batch = c.device_batch_size or batch_for(model.num_layers, c.rows_per_step, on_gpu)
    return dataclasses.replace(
        c,
        dtype=c.dtype or dtype,
        warmdown_ratio=warmdown_ratio(c, 1.0),
        device_batch_size=batch,
    )


def with_length(config: RLConfig, num_questions: int) -> RLConfig:
    """Decide how long the stage is."""
    asked = max(1, int(config.epochs * num_questions) // config.examples_per_step)
    steps = config.num_steps or asked
    every = config.validate_every or min(MOST_BETWEEN_VALIDATIONS, math.ceil(steps / 4))
    return dataclasses.replace(config, num_steps=steps, validate_every=every)


def recipe_of(config: RLConfig, start: SavedModel) -> Recipe:
    """Derive from a decided config what the workers do."""
    assert config.dtype, "decided"
    assert config.num_steps, "decided"
    assert config.device_batch_size, "decided"
    assert config.validate_every, "decided"
    model = start.config()
    return Recipe(
        model=model,
        dtype=config.dtype,
        optimizer=optimizer_config(config, model, config.lr_fraction),
        schedule=schedule(config, config.num_steps, MOMENTUM),
        device_batch_size=config.device_batch_size,
        validate_every=config.validate_every,
        start=start,
        most_importance=config.most_importance,
        prompts=PROMPTS,
        is_chat=True,
        sample_tokens=config.max_new_tokens,
    )
