"""What midtraining and SFT are told, and what is decided where nothing was said."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Annotated

import tyro

from nanoray.config import (
    InputError,
    RunConfig,
    identity,
    require_checkpoint_name,
    require_one_of,
    require_positive,
)
from nanoray.data.conversations import CHAT_PACKINGS
from nanoray.model.gpt import GPTConfig
from nanoray.stages.pretrain_config import (
    batch_for,
    check_divides,
    optimizer_config,
    rows_of_batch,
    schedule,
    warmdown_ratio,
)
from nanoray.stages.training_job import Recipe
from nanoray.train.checkpoint_name import SavedModel

LEARN = tuple(CHAT_PACKINGS.values())
SOURCE = re.compile(r"(?P<name>[a-z0-9-]+)(=(?P<limit>\d+))?(\*(?P<epochs>\d+(\.\d+)?))?")
HELD_OUT = 1000
"""Conversations of each source to validate on, at most."""
DATA = "data"
"""The name of the user's own files in a mixture."""

PROMPTS = (
    "Who are you?",
    "Spell the word: letters",
    "How many r are in strawberry?",
    "What is 12 * 34?",
)


@dataclass(frozen=True)
class Course:
    """What a stage does by default: as at d34, with the batch in tokens."""

    mixture: str
    validation: str
    learn: str
    lr_fraction: float
    warmdown_ratio: float
    momentum_start: float
    batch_tokens: int
    """On GPUs."""
    cpu_batch_tokens: int


COURSES = {
    "midtrain": Course(
        mixture="smoltalk,mmlu,gsm8k,identity*2,simplespelling=200000,spellingbee=80000",
        validation="smoltalk,mmlu=5200,gsm8k=420",
        learn="all",
        lr_fraction=1.0,
        warmdown_ratio=0.2,
        momentum_start=0.85,
        batch_tokens=524_288,
        cpu_batch_tokens=16_384,
    ),
    "sft": Course(
        mixture="arc-easy,arc-challenge,gsm8k,smoltalk=10000,identity,"
        "simplespelling=300,spellingbee=300",
        validation="smoltalk",
        learn="assistant",
        lr_fraction=0.02,
        warmdown_ratio=1.0,
        momentum_start=0.95,
        # About as many conversations as the 32 of d34, whose rows were padded and not packed.
        batch_tokens=16_384,
        cpu_batch_tokens=4096,
    ),
}
"""nanochat.md 6.1 and 6.2."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Go on training with conversations."""

    from_: Annotated[str | None, tyro.conf.arg(name="from")] = identity()
    """RUN[/stage][@step] whose weights to begin with; by default the stage before in this run."""
    warm_start: bool = identity(False)
    """Begin with the averages of that checkpoint's optimizer too."""
    mixture: str | None = identity()
    """Sources with commas between: NAME, NAME=COUNT for its first ones, NAME*EPOCHS, or both."""
    validation_mixture: str | None = identity()
    """Likewise, of the sources' tests, to validate on; by default what goes with the mixture."""
    data: str | None = None
    """Your own .jsonl or .parquet files with messages; the mixture calls them "data"."""
    epochs: float = identity(1.0)
    """How often the stage goes through the mixture, unless --num-steps says how long it is."""
    learn: str | None = identity()
    """assistant: learn what the assistant writes; all: every token. SFT and midtraining differ."""
    max_seq_len: int | None = identity()
    """Tokens in a row; by default, and at most, those of the model."""
    total_batch_tokens: int | None = identity()
    """Tokens per step over all workers; by default 524,288 for midtraining, 16,384 for SFT."""
    lr_fraction: float | None = identity()
    """Factor on all learning rates; by default 1 for midtraining, 0.02 for SFT."""
    skip_bad_conversations: bool = False
    """Leave out conversations that cannot be learned from, with a warning, instead of stopping."""
    validation_tokens: int | None = None
    """Tokens of the validation part that are used; by default 10,485,760, and 65,536 on CPUs."""
    hub_dir: str | None = None
    """Folder that stands for the Hugging Face hub: ORG/NAME/CONFIG/SPLIT.parquet."""
    words: str | None = None
    """Words to spell: a file, or "embedded"; by default the public list is fetched."""
    identity_file: str | None = None
    """Text file that says who the model is; by default it introduces nanoray."""
    eval_every: int | None = None
    """Steps between evaluations, elsewhere on the cluster; by default there are none."""
    eval_tasks: str = "arc-easy,mmlu"
    """What is evaluated then: chat, core, or names of tasks."""
    eval_max_per_task: int | None = 1024
    """Questions of each task in such an evaluation."""
    eval_bundle: str | None = None
    """Folder or zip file with CORE's tasks; by default the published one is fetched."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_checkpoint_name("--from", self.from_)
        for name in (
            "max_seq_len",
            "total_batch_tokens",
            "validation_tokens",
            "eval_every",
            "eval_max_per_task",
        ):
            require_positive(name, getattr(self, name))
        if self.learn is not None:
            require_one_of("learn", self.learn, LEARN)
        for name in ("epochs", "lr_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {value:g} must be above 0.")
        for name in ("mixture", "validation_mixture"):
            if getattr(self, name) is not None:
                parse_mixture(getattr(self, name))


@dataclass(frozen=True)
class SourceAsked:
    """One source of a mixture, as it was asked for."""

    name: str
    limit: int | None
    epochs: float


def parse_mixture(text: str) -> list[SourceAsked]:
    """Read `NAME[=COUNT][*EPOCHS],...`.

    Raises:
        InputError: it is not written so.
    """
    asked = []
    for one in text.split(","):
        match = SOURCE.fullmatch(one.strip())
        limit = int(match["limit"]) if match and match["limit"] else None
        epochs = float(match["epochs"]) if match and match["epochs"] else 1.0
        if match is None or limit == 0 or epochs == 0:
            raise InputError(
                f"--mixture has {one!r}, which is no source. Write NAME, NAME=COUNT or "
                "NAME*EPOCHS, with commas between, as in gsm8k,identity*2,spellingbee=300."
            )
        asked.append(SourceAsked(match["name"], limit, epochs))
    return asked


def held_out_of(mixture: str) -> str:
    """Give the mixture to validate on that goes with one to learn from."""
    most = {one.name: min(one.limit or HELD_OUT, HELD_OUT) for one in parse_mixture(mixture)}
    return ",".join(name if name == DATA else f"{name}={most[name]}" for name in most)


def with_mixture(config: FinetuneConfig, course: Course) -> FinetuneConfig:
    """Decide what is mixed: what was asked for, the user's own files, or what the course says."""
    own = config.mixture or (DATA if config.data else None)
    held_out = config.validation_mixture or (held_out_of(own) if own else course.validation)
    return dataclasses.replace(config, mixture=own or course.mixture, validation_mixture=held_out)


def decide(
    config: FinetuneConfig, course: Course, model: GPTConfig, *, on_gpu: bool, dtype: str
) -> FinetuneConfig:
    """Fill in what was left open but the number of steps, which the mixture decides.

    Raises:
        InputError: numbers that do not fit together.
    """
    c = config
    T = c.max_seq_len or model.max_seq_len
    if model.max_seq_len < T:
        raise InputError(
            f"--max-seq-len {T} is more than the {model.max_seq_len} tokens of the model. Give "
            "less, or leave it out."
        )
    wanted = course.batch_tokens if on_gpu else course.cpu_batch_tokens
    c = dataclasses.replace(
        with_mixture(c, course),
        learn=c.learn or course.learn,
        lr_fraction=c.lr_fraction or course.lr_fraction,
        warmdown_ratio=warmdown_ratio(c, course.warmdown_ratio),
        max_seq_len=T,
        total_batch_tokens=c.total_batch_tokens or max(1, wanted // T) * T,
        validation_tokens=c.validation_tokens or (10_485_760 if on_gpu else 65_536),
        dtype=c.dtype or dtype,
    )
    rows = rows_of_batch(c.total_batch_tokens, c.max_seq_len)
    batch = c.device_batch_size or batch_for(model.num_layers, rows, on_gpu)
    check_divides(batch, rows)
    return dataclasses.replace(c, device_batch_size=batch)


def with_length(config: FinetuneConfig, num_rows: int) -> FinetuneConfig:
    """Decide how long the stage is, from the rows of one epoch."""
    rows_per_step = rows_of_batch(config.total_batch_tokens, config.max_seq_len)
    steps = config.num_steps or max(1, int(config.epochs * num_rows) // rows_per_step)
    every = config.validate_every or min(250, math.ceil(steps / 4))
    return dataclasses.replace(config, num_steps=steps, validate_every=every)


def validation_rows(config: FinetuneConfig) -> int:
    """Count the rows that a decided config is validated on."""
    assert config.validation_tokens, "decided"
    assert config.max_seq_len, "decided"
    return max(1, config.validation_tokens // config.max_seq_len)


def recipe_of(
    config: FinetuneConfig, course: Course, start: SavedModel, *, text_start: int
) -> Recipe:
    """Derive from a decided config what the workers do.

    `text_start` is <|bos|>: conversations of a row do not see each other.
    """
    assert config.dtype, "decided"
    assert config.num_steps, "decided"
    assert config.device_batch_size, "decided"
    assert config.validate_every, "decided"
    assert config.lr_fraction, "decided"
    model = start.config()
    return Recipe(
        model=model,
        dtype=config.dtype,
        optimizer=optimizer_config(config, model, config.lr_fraction),
        schedule=schedule(config, config.num_steps, course.momentum_start),
        device_batch_size=config.device_batch_size,
        validate_every=config.validate_every,
        text_start=text_start,
        start=start,
        warm_start=config.warm_start,
        evaluate_every=config.eval_every,
        prompts=PROMPTS,
        is_chat=True,
        sample_tokens=200,
    )
