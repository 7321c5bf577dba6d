"""From what was seen of a run's storage, data, tokenizer and memory to findings."""

from collections.abc import Mapping
from dataclasses import dataclass

from nanoray.ops.doctor_data import DataFacts, ExpectedData, TokenizerFacts
from nanoray.ops.doctor_findings import (
    Finding,
    failed,
    failed_with,
    gb,
    named,
    ok,
    skipped,
    warning,
)
from nanoray.ops.doctor_memory import StepFacts
from nanoray.ops.doctor_storage import StorageFacts

MUCH_OF_INTERVAL = 0.1
"""Of the time between two checkpoints; a write that takes longer is worth a warning."""
LITTLE_HEADROOM = 0.08
"""Of the memory: fragmentation and NCCL's buffers grow in a long run."""


@dataclass(frozen=True)
class Saving:
    """What a run will keep in its storage."""

    checkpoint_bytes: int
    weights_bytes: int
    """Written by one rank; the rest is shared by all."""
    num_kept: int
    interval_seconds: float | None
    """Between two checkpoints, at most; None where they are counted in steps of unknown length."""


def check_storage(
    address: str, facts: Mapping[str, StorageFacts], saving: Saving | None, error: str | None
) -> list[Finding]:
    """Name nodes that cannot use the storage or see another one, and say how fast it is.

    Args:
        address: what --storage stands for.
        facts: by the nodes' names.
        saving: of the run; None where that is not known.
        error: why the driver could not write.
    """
    if error is not None:
        return [
            failed("storage", f"{address} cannot be written: {error}", "Give a --storage that can.")
        ]
    broken = [f"{name}: {seen.error}" for name, seen in facts.items() if seen.error]
    if broken:
        return [failed("storage", named(broken), f"Make {address} writable there, then try again.")]
    elsewhere = [name for name, seen in facts.items() if not seen.is_visible]
    if elsewhere:
        return [
            failed(
                "storage",
                f"{named(elsewhere)} does not see what the driver wrote to {address}",
                "Mount the same storage on every node, or give an address such as s3://bucket.",
            )
        ]
    if not facts:
        return [skipped("storage", "no node answered")]
    found = [check_storage_speed(facts, saving)]
    space = check_storage_space(facts, saving)
    return [*found, space] if space else found


def check_storage_speed(facts: Mapping[str, StorageFacts], saving: Saving | None) -> Finding:
    """Compare the time that a checkpoint takes with the time between two."""
    slowest = min(facts, key=lambda name: facts[name].write_bytes_per_second)
    write = facts[slowest].write_bytes_per_second
    read = min(seen.read_bytes_per_second for seen in facts.values())
    renames = [seen.rename_seconds for seen in facts.values() if seen.rename_seconds is not None]
    renaming = f", rename {1e3 * max(renames):.1f} ms" if renames else ""
    found = f"write {mb(write)} (least, on {slowest}), read {mb(read)}{renaming}"
    if saving is None:
        return ok("storage", found)
    together = sum(seen.write_bytes_per_second for seen in facts.values())
    seconds = max(saving.weights_bytes / write, saving.checkpoint_bytes / together)
    found = f"{found}: {seconds:.3g} s for a checkpoint of {gb(saving.checkpoint_bytes)}"
    if saving.interval_seconds is None:
        return ok("storage", found)
    found = f"{found}, one in {saving.interval_seconds:.0f} s at most"
    remedy = "Give a faster --storage, or a longer --save-every or --save-every-minutes."
    if seconds > saving.interval_seconds:
        return failed("storage", f"too slow: {found}", remedy)
    if seconds > MUCH_OF_INTERVAL * saving.interval_seconds:
        return warning("storage", f"slow: {found}", remedy)
    return ok("storage", found)


def check_storage_space(facts: Mapping[str, StorageFacts], saving: Saving | None) -> Finding | None:
    """Compare the free space with what the run keeps; None where neither is known."""
    free = {name: seen.free_bytes for name, seen in facts.items() if seen.free_bytes is not None}
    if not free or saving is None:
        return None
    least = min(free, key=lambda name: free[name])
    need = saving.checkpoint_bytes * saving.num_kept
    found = f"{gb(free[least])} free as {least} sees it, {gb(need)} needed for checkpoints"
    if free[least] < need:
        remedy = "Free some space, lower --keep-last, or raise --keep-every."
        return failed("storage space", found, remedy)
    if free[least] < 2 * need:
        return warning("storage space", found, "Free some space: logs and evaluations come too.")
    return ok("storage space", found)


def check_data(
    expected: ExpectedData | None, facts: Mapping[str, DataFacts], error: str | None
) -> Finding:
    """Name shards that are missing or different, and the nodes that do not see them.

    Args:
        expected: what the driver sees.
        facts: by the nodes' names.
        error: why the driver could not list the data.
    """
    if error is not None:
        return failed_with("data", error, "Give --data that this user can read.")
    if expected is None:
        return skipped("data", "the run's settings do not work out")
    unreachable = [f"{name}: {seen.error}" for name, seen in facts.items() if seen.error]
    missing = [
        f"{name} does not have {len(seen.missing)} of {len(expected.sizes)} shards: "
        f"{named(seen.missing)}"
        for name, seen in facts.items()
        if seen.missing
    ]
    different = [
        f"{name} has {named(seen.different)} in another size"
        for name, seen in facts.items()
        if seen.different
    ]
    if unreachable or missing or different:
        return failed(
            "data",
            "; ".join([*unreachable, *missing, *different][:3]),
            f"Every node must see the same files at {expected.address}.",
        )
    if not expected.sizes:
        return warning(
            "data",
            f"none of {expected.to_fetch} shards is there; they are fetched when the run begins",
            "Fetch them before: python jobs/data.py with the same --data.",
        )
    kind = "of the run's manifest, unchanged" if expected.was_saved else "to begin with"
    size = f"{expected.text_bytes / 1e9:.3g} GB of text"
    whom = "every node" if facts else "the driver"
    found = f"{len(expected.sizes)} shards {kind}, {size}, seen by {whom}"
    if expected.to_fetch:
        return warning(
            "data",
            f"{found}; {expected.to_fetch} more are fetched when the run begins",
            "Fetch them before: python jobs/data.py with the same --data.",
        )
    return ok("data", found)


def check_tokenizer(facts: TokenizerFacts, vocab_size: int) -> Finding:
    """Compare --tokenizer, the run's own, that of its checkpoints, and the vocabulary's size."""
    if facts.error is not None:
        remedy = "Give a --tokenizer that this user can read."
        return failed_with("tokenizer", facts.error, remedy)
    used = facts.kept or facts.named
    if used is None and facts.of_checkpoint is not None:
        return failed(
            "tokenizer",
            f"step {facts.step} was trained with tokenizer {facts.of_checkpoint[:16]}, and the "
            "run's tokenizer.json is gone",
            "Give that file with --tokenizer, or begin anew with --fresh.",
        )
    if used is None:
        return ok("tokenizer", f"one of {vocab_size:,} ids is trained when the run begins")
    if facts.kept and facts.named and facts.kept != facts.named:
        return failed(
            "tokenizer",
            f"--tokenizer has hash {facts.named[:16]}, the run's own {facts.kept[:16]}",
            "Leave --tokenizer out, or give another --run.",
        )
    if facts.of_checkpoint is not None and facts.of_checkpoint != used:
        return failed(
            "tokenizer",
            f"step {facts.step} was trained with tokenizer {facts.of_checkpoint[:16]}, not "
            f"{used[:16]}",
            "Restore the run's tokenizer.json, or begin anew with --fresh.",
        )
    if facts.vocab_size != vocab_size:
        return failed(
            "tokenizer",
            f"it has {facts.vocab_size:,} ids, and --vocab-size is {vocab_size:,}",
            "Leave --vocab-size out, or give another --run.",
        )
    agree = f", as step {facts.step} had it" if facts.of_checkpoint else ""
    return ok("tokenizer", f"{vocab_size:,} ids, hash {used[:16]}{agree}")


def check_memory(step: StepFacts | str | None, expected_bytes: float, workers: int) -> Finding:
    """Compare what a step took with what there is.

    Args:
        step: what was measured, if it fits; why it failed; None if it did not end in time.
        expected_bytes: of one worker of the run; it shares its optimizer's state with the others.
        workers: that share the memory: 1 for a GPU.
    """
    if step is None:
        return skipped(
            "memory",
            "one step did not end in the time that it was given; estimated are "
            f"{gb(expected_bytes)} for each worker",
        )
    if isinstance(step, str):
        return failed(
            "memory",
            f"one step did not succeed: {step}; estimated are {gb(expected_bytes)}",
            "Give a smaller --device-batch-size, or a smaller model.",
        )
    rows, capacity = step.device_batch_size, step.capacity_bytes
    need = workers * expected_bytes
    each = f" x {workers} workers of a node" if workers > 1 else ""
    found = (
        f"a step of {rows} rows takes {gb(expected_bytes)}{each} of {gb(capacity)} "
        f"({step.seconds:.1f} s the first time)"
    )
    if need > capacity:
        return failed("memory", found, "Give fewer --num-workers, or a smaller batch.")
    if need > (1 - LITTLE_HEADROOM) * capacity:
        return warning("memory", found, f"Give --device-batch-size {max(1, rows // 2)} to be sure.")
    return ok("memory", f"{found}, {100 * (1 - need / capacity):.0f} % headroom")


def check_lone_step(step: StepFacts, alone_bytes: float, shared_bytes: float) -> Finding:
    """Judge a run by what is estimated for it, where one device alone has too little memory.

    That device has the optimizer's state of all, which the run's workers share. The estimate is
    believed only if it says too that one alone has too little.

    Args:
        step: that does not fit.
        alone_bytes: estimated of one worker alone.
        shared_bytes: estimated of all workers of the run that share the memory.
    """
    rows, capacity = step.device_batch_size, step.capacity_bytes
    tried = "is out of memory" if step.was_tried else "cannot fit"
    more = "" if step.was_tried else f" {gb(step.peak_bytes)} or more are needed,"
    found = f"a step of {rows} rows {tried}:{more} there are {gb(capacity)}"
    safe = (1 - LITTLE_HEADROOM) * capacity
    if shared_bytes <= safe < alone_bytes:
        return warning(
            "memory",
            f"alone, with the whole state of the optimizer, {found}; the run's workers share that "
            f"state, and {gb(shared_bytes)} are estimated",
            "Watch the first steps: a run that is out of memory halves its --device-batch-size.",
        )
    remedy = (
        f"Give --device-batch-size {step.largest_fitting}."
        if step.largest_fitting
        else "Not even one row fits: give a smaller model, shorter rows, or more memory."
    )
    return failed("memory", found, remedy)


def mb(bytes_per_second: float) -> str:
    """Write the speed of a disk."""
    return f"{bytes_per_second / 1e6:,.3g} MB/s"
