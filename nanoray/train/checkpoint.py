"""States on shared storage: written aside, checksummed, committed by one last act.

    checkpoints/step_000100/{model.safetensors, optimizer-*.safetensors, state.json, manifest.json}

A step counts only when its manifest is there and every file has the size and SHA-256 that stand in
it. On a filesystem the whole folder is renamed into place; on an object store the manifest is
written last.
"""

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import save_file
from torch import Tensor

from nanoray.config import RunReplacedError, StorageError
from nanoray.storage import StageFolder, fsync_path, is_local, read_json, write_json
from nanoray.train.checkpoint_files import (
    CheckpointError,
    committed_steps,
    describe_file,
    leftovers,
    make_room,
    step_name,
)
from nanoray.train.checkpoint_name import SavedModel
from nanoray.train.load_state import restore_state
from nanoray.train.state import TrainState
from nanoray.train.world import World

logger = logging.getLogger(__name__)

COMMIT_TIMEOUT_SECONDS = 1800.0
"""How long rank 0 waits for the files of the other ranks before it gives a checkpoint up; longer,
if they may be patient for longer."""
SLOW_SECONDS = 60.0
"""After so long a write is slow, or hangs: training goes on beside it, and saves later."""
POLL_SECONDS = 0.05
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 60.0
"""Between attempts to write to storage that fails; each wait is twice as long as the one before."""
BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class SavePolicy:
    """What is kept of what is saved, and how long saving is tried."""

    keep_last: int = 3
    """How many of the newest steps stay."""
    keep_every: int | None = None
    """Steps that are a multiple of it stay as well."""
    is_wanted: Callable[[int], bool] = lambda step: False
    """Says of which steps somebody else still needs the weights."""
    patience_seconds: float = 1800.0
    """How long a step is tried again when storage fails."""


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a state, copied off the device."""

    step: int
    model: dict[str, Tensor] | None
    """All weights on rank 0, None elsewhere."""
    optimizer: dict[str, Tensor]
    starts: dict[str, int]
    """First row of each optimizer tensor."""
    state: dict[str, Any]  # Any: JSON


class Checkpointer:
    """Saves states of a stage, in a thread behind the training loop, and restores them."""

    def __init__(
        self,
        folder: StageFolder,
        world: World,
        *,
        attempt: int,
        driver: str | None = None,
        facts: dict[str, Any],  # Any: JSON
        policy: SavePolicy | None = None,
    ) -> None:
        """Open the checkpoints of a stage.

        Args:
            folder: the stage's.
            world: this rank among those that save together.
            attempt: number of this start; a group with an older one can commit nothing any more.
            driver: who began it.
            facts: what else state.json says: model config, hashes, versions.
            policy: what is kept, and for how long storage may fail.
        """
        self.folder, self.fs, self.world = folder, folder.fs, world
        self.attempt, self.driver, self.facts = attempt, driver, facts
        self.policy = policy or SavePolicy()
        self.is_retrying = False
        """Storage fails, and the newest save is not written yet."""
        self._began = 0.0
        self._host: dict[str, Tensor] = {}
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: TrainState, before_commit: Callable[[], None] = lambda: None) -> None:
        """Copy the state off the device and write it in the background.

        Waits for the write before it, and raises the error with which that one ended.

        Args:
            state: copied before this returns.
            before_commit: called on rank 0 before the step becomes visible.
        """
        self.wait()
        snapshot = self._copy(state)
        self._writer = threading.Thread(
            target=self._run, args=(snapshot, before_commit), name="checkpoint", daemon=True
        )
        self._began = time.monotonic()
        self._writer.start()

    def cannot_save(self) -> bool:
        """Say whether the next save would have to wait for storage that fails, or hangs.

        Raises:
            StorageError: it has hung for longer than `patience_seconds`.
        """
        if self._writer is None or not self._writer.is_alive():
            return False
        seconds = time.monotonic() - self._began
        if seconds > self.policy.patience_seconds + SLOW_SECONDS:
            raise StorageError(
                f"{self.folder} has taken no checkpoint for {seconds:.0f} s, and says no error. "
                "Mend the storage; the same command goes on from the step before."
            )
        return self.is_retrying or seconds > SLOW_SECONDS

    def wait(self) -> None:
        """Wait until the last write is committed.

        Raises:
            CheckpointError: it could not be.
            RunReplacedError: a newer group has taken over.
            StorageError: storage failed, or hung, for longer than `patience_seconds`.
        """
        if self._writer is not None:
            while self._writer.is_alive():
                self._writer.join(BEAT_SECONDS)
                self.cannot_save()
                self.world.beat("waiting for a checkpoint to be written")
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _copy(self, state: TrainState) -> Snapshot:
        """Copy what this rank saves into host memory that is used again for the next save."""
        pieces = state.optimizer.slices()
        tensors = {f"optimizer/{piece.name}": piece.tensor for piece in pieces}
        if self.world.rank == 0:
            tensors |= {f"model/{name}": p.data for name, p in state.model.named_parameters()}
        on_gpu = self.world.device.type == "cuda"
        for name, tensor in tensors.items():
            if name not in self._host:
                self._host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            self._host[name].copy_(tensor, non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.synchronize()
        model = {name[6:]: host for name, host in self._host.items() if name.startswith("model/")}
        optimizer = {
            name[10:]: host for name, host in self._host.items() if name.startswith("optimizer/")
        }
        return Snapshot(
            step=state.step,
            model=model or None,
            optimizer=optimizer,
            starts={piece.name: piece.start for piece in pieces},
            state={
                "step": state.step,
                "tokens": state.tokens,
                "cursor": [state.cursor.position, state.cursor.row],
                "guard": state.guard.to_json(),
                "updates": state.updates,
                "world_size": self.world.world_size,
                **self.facts,
            },
        )

    def _run(self, snapshot: Snapshot, before_commit: Callable[[], None]) -> None:
        """Write one snapshot, again and again if storage fails, and keep the last error."""
        began, pause = time.perf_counter(), FIRST_RETRY_SECONDS
        try:
            while True:
                try:
                    self._write(snapshot, before_commit)
                    break
                except (CheckpointError, RunReplacedError):
                    raise
                except Exception as error:  # each filesystem has its own errors for an outage
                    self._wait_for_storage(snapshot.step, error, began, pause)
                    pause = min(2 * pause, LONGEST_RETRY_SECONDS)
            if self.world.rank == 0:
                seconds = time.perf_counter() - began
                logger.info("saved step %d to %s in %.1f s", snapshot.step, self.folder, seconds)
                self._tidy_if_possible(snapshot.step)
        except BaseException as error:  # raised again by `wait` in the training loop
            self._error = error
        finally:
            self.is_retrying = False

    def _wait_for_storage(self, step: int, error: Exception, began: float, pause: float) -> None:
        """Give back what a failed write has taken, and wait for a while.

        Raises:
            StorageError: that has gone on for too long.
        """
        self.is_retrying = True
        reason, failed = str(error) or type(error).__name__, time.perf_counter() - began
        if failed + pause > self.policy.patience_seconds:
            raise StorageError(
                f"{self.folder} could not be written for {failed:.0f} s ({reason}). Step {step} is "
                "not saved. Mend the storage; the same command goes on from the step before."
            ) from error
        logger.warning(
            "step %d could not be saved (%s); tried again in %.0f s, training goes on",
            step,
            reason,
            pause,
        )
        if self.world.world_size == 1:  # else other ranks have their files in the same folder
            with contextlib.suppress(Exception):  # on a full disk every byte counts
                self.fs.rm(self._aside(step), recursive=True)
        time.sleep(pause)

    def _write(self, snapshot: Snapshot, before_commit: Callable[[], None]) -> None:
        """Write this rank's files, and on rank 0 commit when all ranks have theirs."""
        rank, world_size = self.world.rank, self.world.world_size
        aside = self._aside(snapshot.step)
        if rank == 0 and self._has_committed(snapshot.step):
            return  # by an attempt that failed just after that
        # On an object store the files of a step have one place, and writing there would damage what
        # a newer group has committed.
        self.check_attempt()
        self.fs.makedirs(aside, exist_ok=True)
        optimizer_file = f"optimizer-{rank:05d}-of-{world_size:05d}.safetensors"
        files = {
            optimizer_file: self._write_tensors(
                aside, optimizer_file, snapshot.optimizer, snapshot.starts
            )
        }
        if snapshot.model is not None:
            files["model.safetensors"] = self._write_tensors(
                aside, "model.safetensors", snapshot.model, {}
            )
            write_json(self.fs, f"{aside}/state.json", snapshot.state)
            files["state.json"] = describe_file(self.fs, f"{aside}/state.json")
        write_json(
            self.fs, f"{aside}/rank-{rank:05d}.json", {"attempt": self.attempt, "files": files}
        )
        if rank == 0:
            files = self._gather_files(aside, snapshot.step)
            before_commit()
            self._commit(aside, snapshot.step, files)

    def _has_committed(self, step: int) -> bool:
        """Say whether this very group has committed a step."""
        path = self.folder.path("checkpoints", step_name(step), "manifest.json")
        manifest = read_json(self.fs, path)
        return manifest is not None and manifest.get("attempt") == self.attempt

    def _aside(self, step: int) -> str:
        """Name the folder in which a step is written before it counts."""
        if is_local(self.fs):
            return self.folder.path("checkpoints", f".{step_name(step)}.attempt-{self.attempt:04d}")
        return self.folder.path("checkpoints", step_name(step))

    def _write_tensors(
        self, folder: str, name: str, tensors: dict[str, Tensor], starts: dict[str, int]
    ) -> dict[str, Any]:  # Any: JSON
        """Write one safetensors file, flushed to the disk; gives its size and checksum."""
        # One entry: safetensors writes several in a random order, and equal states should have
        # equal files.
        metadata = {"starts": json.dumps(starts)}
        if is_local(self.fs):
            save_file(tensors, f"{folder}/{name}", metadata)
            # safetensors lets nobody else read it, whatever the umask says.
            os.chmod(f"{folder}/{name}", os.stat(folder).st_mode & 0o666)
            fsync_path(f"{folder}/{name}")
            return describe_file(self.fs, f"{folder}/{name}")
        with tempfile.TemporaryDirectory() as local:
            save_file(tensors, f"{local}/{name}", metadata)
            self.fs.put_file(f"{local}/{name}", f"{folder}/{name}")
            return describe_file(LocalFileSystem(), f"{local}/{name}")

    def _gather_files(self, aside: str, step: int) -> dict[str, Any]:  # Any: JSON
        """Wait for the file lists of all ranks and join them."""
        files: dict[str, Any] = {}
        begun = read_json(self.fs, f"{aside}/manifest.json")
        if begun is not None and begun["attempt"] == self.attempt:
            return dict(begun["files"])  # a commit that failed half-way took the lists away
        deadline = time.monotonic() + max(COMMIT_TIMEOUT_SECONDS, self.policy.patience_seconds)
        for rank in range(self.world.world_size):
            path = f"{aside}/rank-{rank:05d}.json"
            while (found := read_json(self.fs, path)) is None or found["attempt"] != self.attempt:
                if time.monotonic() > deadline:
                    self.check_attempt()  # a newer group may have taken their files away
                    raise CheckpointError(
                        aside,
                        f"rank {rank} did not write its part of step {step}.",
                        "Look at its log.",
                    )
                time.sleep(POLL_SECONDS)
            files |= found["files"]
        return files

    def check_attempt(self) -> None:
        """Raise an error unless this group has the run, as `RunFolder.check_attempt` does."""
        self.folder.run.check_attempt(self.attempt, self.driver)

    def _commit(self, aside: str, step: int, files: dict[str, Any]) -> None:  # Any: JSON
        """Make a step count, unless a newer group of workers has taken over."""
        self.check_attempt()
        manifest = {"step": step, "attempt": self.attempt, "files": files}
        write_json(self.fs, f"{aside}/manifest.json", manifest)
        for rank in range(self.world.world_size):
            with contextlib.suppress(Exception):  # they do no harm where they stay
                self.fs.rm_file(f"{aside}/rank-{rank:05d}.json")
        if is_local(self.fs):  # elsewhere the manifest was the last act
            fsync_path(aside)
            self.check_attempt()
            make_room(self.folder, step, self.attempt)
            os.rename(aside, self.folder.path("checkpoints", step_name(step)))
            fsync_path(self.folder.path("checkpoints"))

    def _tidy_if_possible(self, saved: int) -> None:
        """Note what was saved, and prune; what fails now is done after the next save.

        Raises:
            RunReplacedError: from now on a newer group decides what is kept.
        """
        try:
            self.check_attempt()
            self.folder.note_saved(saved)
            self._prune(saved)
        except RunReplacedError:
            raise
        except Exception as error:  # each filesystem has its own errors
            logger.warning("old checkpoints could not be deleted: %s", error)

    def _prune(self, saved: int) -> None:
        """Delete steps that need not be kept, and what dead attempts left half written.

        Args:
            saved: the step that this group has just committed.
        """
        steps = committed_steps(self.folder)
        for step in steps[: -self.policy.keep_last]:
            is_kept = self.policy.keep_every and step % self.policy.keep_every == 0
            if not is_kept and not self.policy.is_wanted(step):
                self._delete(step)
        for name in leftovers(self.folder, self.attempt, saved):
            self.fs.rm(self.folder.path("checkpoints", name), recursive=True)

    def _delete(self, step: int) -> None:
        """Delete a step; a kill in between leaves no half of it that counts."""
        path = self.folder.path("checkpoints", step_name(step))
        if is_local(self.fs):
            os.rename(path, self._aside(step))
            path = self._aside(step)
        else:
            self.fs.rm_file(f"{path}/manifest.json")
        self.fs.rm(path, recursive=True)

    def restore(self, state: TrainState, step: int) -> None:
        """Load a verified step, which any number of ranks may have saved, into a state.

        Raises:
            InputError: it was saved with another model, tokenizer or data plan.
        """
        restore_state(state, SavedModel(self.folder, step), self.facts)
