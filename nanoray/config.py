"""What a run is told: frozen dataclasses, read from the command line and kept as JSON.

Every field is either *identity* (it decides the result: a resume with another value is refused)
or *execution* (how the same result is computed: free to change between two starts).
"""

import dataclasses
import math
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nanoray.credentials import without_secrets, words_of

FORMAT_VERSION = 1
"""Written into every JSON file of a run, so that a later nanoray knows what it reads."""

INTERRUPTED = "Interrupted. The same command goes on from the newest checkpoint."

DTYPE_NAMES = ("float32", "bfloat16")

LARGEST_SEED = 2**63 - 1
"""What every generator of random numbers takes, and a table of trials (int64)."""

RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
"""Any other sign has a meaning in addresses, globs, shells or names of checkpoints."""

DATASETS_FOLDER = "datasets"
"""Where named datasets are kept in a storage, beside the runs."""


class InputError(Exception):
    """What the user gave cannot be used; the text says what is wrong, the value and the remedy.

    No `ValueError`, because the parser of the command line would put a box around it.
    """


class RunFailedError(RuntimeError):
    """A run that stopped on its way; the text says how it goes on, and what it died of."""


class RunStoppedError(RunFailedError):
    """A run that has saved and stopped because it was asked to; the text says why."""


class RunReplacedError(RunFailedError):
    """A start of a run that another one has taken the run from, and that must not take it back."""

    def __init__(self, run: str, own: int, newest: int, driver: str) -> None:
        super().__init__(run, own, newest, driver)
        self.run, self.own, self.newest, self.driver = run, own, newest, driver

    def __str__(self) -> str:
        return (
            f"{self.run}: attempt {self.newest} has replaced attempt {self.own}, which saves "
            f"nothing any more. It belongs to {self.driver or 'another start'} and goes on with "
            "the run: give this command again only when that one has ended."
        )


class DataError(InputError):
    """Training data that cannot be used."""


class StorageError(InputError):
    """A storage location that cannot be read or written."""


def identity(default: Any = None) -> Any:  # Any: like dataclasses.field, it stands for every type
    """Declare a config field that decides the result of a run."""
    return field(default=default, metadata={"identity": True})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every stage of a run is told. `None` means: choose for me, or as the run began."""

    run: str | None = None
    """Name of the run, and of its folder in the storage; by default the depth, as in d20."""
    storage: str | None = None
    """Folder or address (s3://, gs://, ...) in which runs are kept; by default ./runs."""
    num_workers: str | None = None
    """Training processes: one number, or A:B for a range; by default one per GPU, or one on CPU."""
    cpus_per_worker: float | None = None
    """Logical CPUs that Ray reserves for each worker; by default all but one, shared out."""
    threads_per_worker: int | None = None
    """Threads of each worker's CPU kernels; by default the machine's cores shared out."""
    max_restarts: int = 10
    """Restarts after lost workers or hangs, in a row without a new checkpoint, before giving up."""
    hang_seconds: float = 600.0
    """Silence of a training worker after which its group is looked into, and started again."""
    storage_patience_seconds: float = 1800.0
    """How long storage may fail before the run stops; until then training goes on."""
    skip_sigmas: float = 6.0
    """Skip steps whose gradient norm is this many deviations above the last 128; 0 for no limit."""
    max_skipped_steps: int = identity(5)
    """Skipped steps in a row after which the run goes back to a checkpoint and past their data."""
    max_rollbacks: int = 3
    """How many times a run may go back so before it stops for good."""
    save_every: int | None = None
    """Steps between checkpoints; by default as failures and the stall of a save ask for."""
    save_every_minutes: float | None = None
    """Minutes between checkpoints; may be given besides --save-every."""
    save_at: tuple[int, ...] = ()
    """Steps that are saved, and kept, whatever else is."""
    keep_last: int = 3
    """How many of the newest checkpoints are kept."""
    keep_every: int | None = None
    """Keep, besides the newest, each checkpoint whose step is a multiple of this."""
    max_cost: float | None = None
    """Save and stop once the stage's workers, in all its starts, have cost so many dollars."""
    dollars_per_gpu_hour: float | None = None
    """Price of a GPU, or on CPUs of a worker; by default that of its kind (nanoray/prices.py)."""
    num_steps: int | None = identity()
    """Length of the stage in steps; by default something else decides it."""
    device_batch_size: int | None = None
    """Rows per forward pass of a worker; by default what 80 GB hold at this depth, 8 on CPUs."""
    seed: int = identity(42)
    """Decides the initial weights, the order of the data, and what is drawn."""
    dtype: str | None = identity()
    """Precision of the computation; by default bfloat16 where the hardware has it, else float32."""
    newton_schulz_dtype: str = identity("bfloat16")
    """Precision of Muon's orthogonalization."""
    matrix_lr: float = identity(0.02)
    """Muon's learning rate, for the matrices of the blocks."""
    embedding_lr: float = identity(0.2)
    """AdamW's learning rate for the embedding, at width 768."""
    unembedding_lr: float = identity(0.004)
    """AdamW's learning rate for the unembedding, at width 768."""
    weight_decay: float = identity(0.0)
    """Decoupled weight decay of embedding and unembedding."""
    grad_clip: float | None = identity(1.0)
    """Largest norm of the whole gradient; 0 for no limit."""
    warmup_ratio: float = identity(0.0)
    """Part of the stage in which the learning rate rises."""
    warmdown_ratio: float | None = identity()
    """Part, at its end, in which it falls; by default 0.2, and 1 for SFT and RL."""
    final_lr_fraction: float = identity(0.0)
    """Learning rate at the end, as a fraction of the highest."""
    validate_every: int | None = None
    """Steps between validations; by default four in a run, and at least one every 250 steps."""
    eager: bool = False
    """Do not compile the model with torch.compile."""
    log_every: int = 10
    """Steps between two lines of progress where there is no terminal."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project; offline without an API key, or an answer."""
    wandb_group: str | None = None
    """Group of runs in that project; by default none."""
    doctor: str = "auto"
    """always, never, or auto: let jobs/doctor.py look first if the stage takes 8 GPUs or more."""
    fresh: bool = False
    """Move what an earlier run of this name left aside, and begin anew."""

    def __post_init__(self) -> None:
        for name in ("max_restarts", "max_rollbacks", "skip_sigmas"):
            require_positive(name, getattr(self, name), least=0)
        for name in ("max_skipped_steps", "keep_last", "log_every"):
            require_positive(name, getattr(self, name))
        require_positive("hang_seconds", self.hang_seconds, least=5)
        for name in (
            *("skip_sigmas", "hang_seconds", "storage_patience_seconds"),
            *("max_cost", "dollars_per_gpu_hour", "cpus_per_worker"),
        ):
            require_between(name, getattr(self, name) or 0.0, math.inf)
        for name in (
            "save_every",
            "keep_every",
            "threads_per_worker",
            "num_steps",
            "device_batch_size",
            "validate_every",
        ):
            require_positive(name, getattr(self, name))
        require_one_of("doctor", self.doctor, ("auto", "always", "never"))
        for name in ("dtype", "newton_schulz_dtype"):
            if getattr(self, name) is not None:
                require_one_of(name, getattr(self, name), DTYPE_NAMES)
        for step in self.save_at:
            require_positive("save_at", step)
        require_between("seed", self.seed, LARGEST_SEED)
        for name in ("matrix_lr", "embedding_lr", "unembedding_lr", "weight_decay"):
            require_between(name, getattr(self, name), math.inf)
        require_between("grad_clip", self.grad_clip or 0.0, math.inf)
        for name in ("warmup_ratio", "warmdown_ratio", "final_lr_fraction"):
            require_between(name, getattr(self, name) or 0.0, 1)
        if self.warmup_ratio + (self.warmdown_ratio or 0.0) > 1:
            raise InputError(
                f"--warmup-ratio {self.warmup_ratio} and --warmdown-ratio {self.warmdown_ratio} "
                "are more than the whole run. Give less of one."
            )
        require_run_name("--run", self.run)
        if self.save_every_minutes is not None and not 0 < self.save_every_minutes < math.inf:
            raise InputError(
                f"--save-every-minutes {self.save_every_minutes:g} is no time. Give 0.5, 10, ..."
            )
        worker_range(self.num_workers)
        require_money(self.max_cost)
        for value in vars(self).values():
            require_no_secret(str(value))


def flag(name: str) -> str:
    """Give the command-line spelling of a field: `max_seq_len` -> `--max-seq-len`."""
    return "--" + name.rstrip("_").replace("_", "-")


def require_positive(name: str, value: float | None, least: int = 1) -> None:
    """Raise an `InputError` that names the flag unless `value` is None or at least `least`."""
    if value is not None and value < least:
        raise InputError(f"{flag(name)} {value} is too small. The least is {least}.")


def require_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise an `InputError` unless the value is one of those allowed."""
    if value not in allowed:
        raise InputError(f"{flag(name)} {value} is unknown. Choose {' or '.join(allowed)}.")


def require_between(name: str, value: float, most: float) -> None:
    """Raise an `InputError` unless the value is from 0 to `most`; nan is not."""
    if not 0 <= value <= most or value == math.inf:
        allowed = "Give 0 or more." if most == math.inf else f"Give a number from 0 to {most}."
        raise InputError(f"{flag(name)} {value} does not work. {allowed}")


def require_money(max_cost: float | None) -> None:
    """Raise an `InputError` for a limit that nothing can be done below."""
    if max_cost == 0:
        raise InputError("--max-cost 0 pays for nothing. Give the dollars that it may cost.")


def require_run_name(label: str, value: str | None) -> None:
    """Raise an `InputError` that begins with the label unless the value, if any, names a run."""
    if value is None:
        return
    if RUN_NAME.fullmatch(value) is None:
        raise InputError(
            f"{label} {value[:250]!r} cannot name a folder. Use A-Z, a-z, 0-9, '_', '-' "
            "and '.', at most 200 of them, the first one neither '-' nor '.'."
        )
    if value.casefold() == DATASETS_FOLDER:  # also where a disk knows no capitals
        raise InputError(
            f"{label} {value} is the name of the folder of named datasets. Give another one."
        )


def require_checkpoint_name(label: str, value: str | None) -> None:
    """Raise an `InputError` unless the value, if any, begins with a run: RUN[/stage][@step]."""
    require_run_name(label, value and value.partition("@")[0].partition("/")[0])


def require_no_secret(address: str) -> None:
    """Raise an `InputError` if there is a password, a key or a signature in an address."""
    safe = without_secrets(address)
    if safe != address:
        raise InputError(
            f"{safe} has a secret in it (***), and addresses are seen in lists of processes, files "
            "and logs. Give it by the environment or a file, as SECURITY.md says."
        )


def worker_range(num_workers: str | None) -> tuple[int, int] | None:
    """Read `N` or `A:B` as (least, most) workers; None stays None.

    Raises:
        InputError: neither of the two forms, zero workers, or A > B.
    """
    if num_workers is None:
        return None
    least, _, most = num_workers.partition(":")
    if not least.isdecimal() or (most and not most.isdecimal()) or num_workers.endswith(":"):
        raise InputError(
            f"--num-workers {num_workers} is not a number or a range. Write 8, or 2:8."
        )
    low, high = int(least), int(most or least)
    if not 1 <= low <= high:
        raise InputError(f"--num-workers {num_workers} is empty. Write 8, or 2:8 with 2 <= 8.")
    return low, high


Config = TypeVar("Config", bound=RunConfig)


def to_json(config: RunConfig) -> dict[str, Any]:  # Any: JSON
    """Give the config as plain JSON values, one key per field."""
    return dataclasses.asdict(config)


def from_json(cls: type[Config], saved: dict[str, Any]) -> Config:  # Any: JSON
    """Rebuild a config from `to_json`; keys that this version does not know are left out."""
    known = {f.name for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {  # Any: JSON, which knows no tuples
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved.items()
        if name in known
    }
    return cls(**values)


def continue_config(saved: Config, asked: Config) -> Config:
    """Merge the config that a run began with and the one it is resumed with.

    An identity field that the user left open (None) keeps the value with which the run began.

    Raises:
        InputError: an identity field was asked for with another value; the text names each.
    """
    changed: list[str] = []
    merged: dict[str, Any] = {}
    for f in dataclasses.fields(asked):
        began, now = getattr(saved, f.name), getattr(asked, f.name)
        merged[f.name] = began if now is None and f.metadata.get("identity") else now
        if f.metadata.get("identity") and now is not None and now != began:
            changed.append(f"{flag(f.name)} was {began} and is {now}")
    if changed:
        raise InputError(
            f"This run began with other settings: {'; '.join(changed)}. "
            "Give the old values to resume it, another --run, or --fresh to begin anew."
        )
    return dataclasses.replace(asked, **merged)


def run_job(cls: Any, job: Callable[[Any], object]) -> None:  # Any: a dataclass or a union of them
    """Parse the command line into `cls`, call the job, and print what it returns.

    Wrong input ends the process with one sentence and exit code 2, and so does a run that another
    start has taken over: neither is to be tried again. A run that failed ends with code 1, as does
    a job whose storage was away, Ctrl-C with code 130.
    """
    import tyro  # only command lines need it, and a bare GPU machine may lack it

    from nanoray import logs, storage_errors  # whose errors are of this module
    from nanoray.shell_words import check_words

    try:
        logs.log_to_stderr()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        for word in words_of(sys.argv[1:]):  # the parser tells what it does not understand
            require_no_secret(word)
        check_words(sys.argv[1:])
        config = tyro.cli(cls, config=(tyro.conf.FlagCreatePairsOff,))
        result = job(config)
    except RunStoppedError as stopped:
        logs.say_last(f"stopped: {stopped}", level="WARNING")
        sys.exit(1)
    except (InputError, RunFailedError) as error:
        logs.say_last(f"error: {error}")
        sys.exit(2 if isinstance(error, (InputError, RunReplacedError)) else 1)
    except BrokenPipeError:  # `--help | head`
        sys.exit(141)
    except Exception as error:
        outage = storage_errors.sentence_of(error)
        if outage is not None:
            logs.say_last(f"error: {outage}")
            sys.exit(1)
        # A fault of ours, whose text may hold what libraries know.
        text = "".join(traceback.format_exception_only(error)).strip()
        logs.say_last(text, traceback=traceback.format_exc())
        sys.exit(1)
    except KeyboardInterrupt:
        logs.say_last(INTERRUPTED, level="WARNING")
        sys.exit(130)
    if result is not None:
        print(result)
