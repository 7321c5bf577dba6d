"""The trials that a forecast is made of: which count, which do not and why, and what they are."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from nanoray.config import InputError
from nanoray.model.scaling import flops_per_token, gpt_config, num_parameters
from nanoray.ops.scaling_law import Array, Cost, Points
from nanoray.ops.trial_table import SWEEP_FILE, Status, TrialRow
from nanoray.storage import RunFolder, read_json

DEEPEST = 256
"""Blocks up to which costs are known."""


@dataclass(frozen=True)
class Shape:
    """What models of a sweep share beside their depth."""

    vocab_size: int
    max_seq_len: int
    head_dim: int


@dataclass(frozen=True)
class Trials:
    """What a forecast is made of."""

    used: list[TrialRow]
    left_out: dict[str, str]
    """Name -> reason."""
    shape: Shape
    notes: list[str]
    """What a reader must know of them."""

    @property
    def points(self) -> Points:
        """Give size, tokens, FLOPs and loss of those used."""
        columns = [
            (float(r.scaling_parameters), float(r.tokens), r.flops, r.bits_per_byte)
            for r in self.used
        ]
        return Points(*np.array(columns, dtype=np.float64).T)

    @property
    def depths(self) -> list[int]:
        """The depths of those used, rising."""
        return sorted({row.depth for row in self.used})

    @property
    def cost(self) -> Cost:
        """FLOPs per token by size, between the whole depths along a line of logarithms."""
        sizes, costs = [], []
        for depth in range(1, DEEPEST + 1):
            # The heads' size changes neither weights nor FLOPs, and 64 divides every width.
            model = gpt_config(
                depth, self.shape.vocab_size, head_dim=64, max_seq_len=self.shape.max_seq_len
            )
            sizes.append(num_parameters(model) - model.vocab_size * model.model_dim)
            costs.append(flops_per_token(model))
        log_sizes, per_size = np.log(sizes), np.log(np.array(costs) / np.array(sizes))

        def cost(size: Array) -> Array:
            return size * np.exp(np.interp(np.log(size), log_sizes, per_size))

        return cost


def choose_trials(
    rows: list[TrialRow],
    sweep: str,
    *,
    vocab_size: int | None = None,
    max_seq_len: int | None = None,
    head_dim: int | None = None,
) -> Trials:
    """Take the trials that ended well and can be compared.

    Args:
        rows: the table of a sweep.
        sweep: its name, for messages.
        vocab_size: of the model that is forecast; by default that of most trials.
        max_seq_len: the same.
        head_dim: the same.

    Raises:
        InputError: none is left.
    """
    left_out = {row.name: why for row in rows if (why := why_unusable(row))}
    good = [row for row in rows if row.name not in left_out]
    if not good:
        states = ", ".join(f"{n} {state}" for state, n in Counter(r.status for r in rows).items())
        raise InputError(
            f"{sweep} has no trial with a result ({states or 'its table is empty'}). "
            "Run jobs/sweep.py until some are done."
        )
    kinds = Counter((row.vocab_size, row.max_seq_len) for row in good)
    vocab, length = kinds.most_common(1)[0][0]
    vocab, length = vocab_size or vocab, max_seq_len or length
    for row in good:
        if (row.vocab_size, row.max_seq_len) != (vocab, length):
            left_out[row.name] = (
                f"{row.vocab_size:,} ids and rows of {row.max_seq_len:,} tokens, where the "
                f"forecast is for {vocab:,} and {length:,}: its loss follows another law"
            )
    used = [row for row in good if row.name not in left_out]
    if not used:
        found = " or ".join(f"{v} and {t}" for v, t in kinds)
        raise InputError(
            f"{sweep} has no trial with --vocab-size {vocab} and --max-seq-len {length}. "
            f"Its trials have {found}."
        )
    heads = Counter(row.head_dim for row in used).most_common(1)[0][0]
    shape = Shape(vocab, length, head_dim or heads)
    return Trials(used, left_out, shape, notes_on(used, shape))


def why_unusable(row: TrialRow) -> str | None:
    """Say why a trial cannot count; None for one that can."""
    if row.status is not Status.DONE:
        return f"{row.status}: {row.reason}" if row.reason else str(row.status)
    if row.bits_per_byte is None or not 0 < row.bits_per_byte < float("inf"):
        return f"its validation gave {row.bits_per_byte} bits per byte"
    return None


def notes_on(used: list[TrialRow], shape: Shape) -> list[str]:
    """Say what is mixed among the trials that count."""
    notes = []
    heads = sorted({row.head_dim for row in used})
    if heads != [shape.head_dim]:
        notes.append(
            f"Heads of {', '.join(map(str, heads))} dimensions were tried, and the forecast is for "
            f"{shape.head_dim}: the law takes no account of that."
        )
    devices = Counter(row.device for row in used)
    if len(devices) > 1:
        made = ", ".join(f"{count} on {name}" for name, count in devices.items())
        notes.append(
            f"Trials ran on different devices ({made}). Bits per byte can be compared, times only "
            "among those of one device."
        )
    return notes


def data_of(rows: list[TrialRow], sweep: str) -> str | None:
    """Say what the trials were trained on, as the sweep was told; None if nothing tells.

    A trial's own config names the place of the shards, which is no name of a dataset.

    Args:
        rows: trials.
        sweep: folder or address of the sweep, in which their runs are.
    """
    run = RunFolder(sweep, ".")
    begun = read_json(run.fs, run.path(SWEEP_FILE))
    if begun is not None:
        return begun["base"]["data"] or "embedded texts"
    for row in rows:
        config = RunFolder(sweep, row.name).stage("pretrain").read_config()
        if config is not None:
            return config.get("data") or "embedded texts"
    return None
