"""Going back to a checkpoint and past the data that led away from it.

Skipped steps leave the weights alone, so data that are bad by themselves need no rollback. Many in
a row say that the weights have gone wrong on the way. So a rollback leaves out all data from the
checkpoint to the last skipped step (as PaLM did by hand, section 5.1): with the same data again,
the same would happen.

Rollbacks stand in <stage>/rollbacks.json before the group ends, so that every later start from the
same checkpoint leaves out the same data. The ledger names them: in the line of the first step after
a gap, `left_out_from` is where it begins, and `first` where it ends.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from nanoray.config import InputError
from nanoray.data.plan import Cursor
from nanoray.storage import StageFolder, read_json, write_json
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.checkpoint_files import committed_steps, move_aside, read_state
from nanoray.train.state import TrainState
from nanoray.train.world import World, all_reduce_sum

logger = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """Too many steps in a row were skipped; another start of the group goes past their data."""

    def __init__(self, step: int, skipped: int, problem: str) -> None:
        super().__init__(step, skipped, problem)
        self.step, self.skipped, self.problem = step, skipped, problem

    def __str__(self) -> str:
        return (
            f"Step {self.step} was skipped, the last of {self.skipped} in a row: {self.problem}. "
            "The run goes back to its newest checkpoint and past the data since then."
        )


class RollbackLimitError(InputError):
    """Training that no rollback could mend; another start would come to the same end."""

    def __init__(self, step: int, rollbacks: int, problem: str) -> None:
        super().__init__(step, rollbacks, problem)
        self.step, self.rollbacks, self.problem = step, rollbacks, problem

    def __str__(self) -> str:
        return (
            f"Training diverged at step {self.step} ({self.problem}), after {self.rollbacks} "
            "rollbacks. metrics.jsonl shows the norms before it, rollbacks.json the data that were "
            "left out. Look at those data, begin anew with lower learning rates, or go on with a "
            "larger --max-rollbacks, or a larger --skip-sigmas if the norms look healthy."
        )


@dataclass(frozen=True)
class Rollback:
    """A decision that every start from a step with a cursor must repeat."""

    step: int
    """The checkpoint; 0 for the beginning of the run."""
    first: Cursor
    """Where that checkpoint stands in the data, and the left-out part begins."""
    next: Cursor
    """Where training goes on."""

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the rollback as plain values."""
        first, following = self.first, self.next
        return {
            "step": self.step,
            "first": [first.position, first.row],
            "next": [following.position, following.row],
        }


def read_rollbacks(folder: StageFolder) -> list[Rollback]:
    """Read all rollbacks of a stage, in the order in which they were decided."""
    saved = read_json(folder.fs, folder.path("rollbacks.json")) or {"rollbacks": []}
    return [
        Rollback(entry["step"], Cursor(*entry["first"]), Cursor(*entry["next"]))
        for entry in saved["rollbacks"]
    ]


def start_cursor(folder: StageFolder, step: int) -> Cursor:
    """Say where in the data a start from a committed step begins; step 0 is the beginning."""
    return after_rollbacks(folder, step, saved_cursor(folder, step))


def saved_cursor(folder: StageFolder, step: int) -> Cursor:
    """Say where in the data a committed step stands."""
    return Cursor(*read_state(folder, step)["cursor"]) if step else Cursor()


def after_rollbacks(folder: StageFolder, step: int, cursor: Cursor) -> Cursor:
    """Give the cursor behind all that is left out after a step, or the same cursor."""
    found = [r.next for r in read_rollbacks(folder) if (r.step, r.first) == (step, cursor)]
    return found[-1] if found else cursor


def leave_out(state: TrainState, folder: StageFolder) -> None:
    """Move a state that was just restored, or is new, behind what is left out after it."""
    cursor = after_rollbacks(folder, state.step, state.cursor)
    if cursor != state.cursor:
        state.left_out_from, state.cursor = state.cursor, cursor


def roll_back(
    state: TrainState, checkpointer: Checkpointer, problem: str, world: World, max_rollbacks: int
) -> Exception:
    """Record a rollback, and give the error with which every rank must end.

    A collective: no rank may end, and have the group restarted, before rank 0 has written.

    Args:
        state: after the last skipped step.
        checkpointer: has written the newest checkpoint, or writes it still.
        problem: why that step was skipped.
        world: this rank among the others.
        max_rollbacks: how many there may be in the whole run.
    """
    checkpointer.wait()
    gave_up = torch.zeros((), device=world.device)
    if world.rank == 0:
        checkpointer.check_attempt()
        decided = record_rollback(checkpointer.folder, state.cursor, max_rollbacks)
        gave_up += decided is None
    if all_reduce_sum(gave_up).item():
        return RollbackLimitError(state.step, max_rollbacks, problem)
    return DivergedError(state.step, state.guard.in_a_row, problem)


def record_rollback(folder: StageFolder, end: Cursor, max_rollbacks: int) -> Rollback | None:
    """Decide where to go back to, and write it down; None if there were too many already.

    It is the newest checkpoint. If a rollback to that one has led nowhere, the checkpoint itself is
    taken for bad, moved aside, and the one before is taken, if there is one.
    """
    past, steps = read_rollbacks(folder), committed_steps(folder) or [0]
    step, bad = steps[-1], None
    if len(steps) > 1 and (step, saved_cursor(folder, step)) in [(r.step, r.first) for r in past]:
        step, bad = steps[-2], step
    decided = Rollback(step, saved_cursor(folder, step), end)
    # A start that was killed between writing and ending comes here again, and decides the same.
    if decided not in past:
        if len(past) >= max_rollbacks:
            return None
        entries = [rollback.to_json() for rollback in [*past, decided]]
        write_json(folder.fs, folder.path("rollbacks.json"), {"rollbacks": entries})
    if bad is not None:
        moved = move_aside(folder, bad, "rolled_back")
        logger.warning("going back to step %d led nowhere; moved it to %s", bad, moved)
    logger.warning(
        "rollback %d of at most %d: on from step %d, leaving out the data from row %d of unit %d "
        "to row %d of unit %d",
        len(past) + (decided not in past),
        max_rollbacks,
        step,
        decided.first.row,
        decided.first.position,
        end.row,
        end.position,
    )
    return decided
