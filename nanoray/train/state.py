"""All that a resume needs.

There is no state of a random generator: whatever is drawn at random follows from the seed and a
step or position, so that it can be drawn again.
"""

from dataclasses import dataclass, field

from nanoray.data.plan import Cursor
from nanoray.model.gpt import GPT
from nanoray.train.guard import StepGuard
from nanoray.train.optimizer import MuonAdamW


@dataclass
class TrainState:
    """A run between two steps."""

    model: GPT
    optimizer: MuonAdamW
    step: int = 0
    """Steps done, skipped ones included: schedules go by them."""
    tokens: int = 0
    """Targets learned from."""
    cursor: Cursor = field(default_factory=Cursor)
    """The next row of the data plan."""
    guard: StepGuard = field(default_factory=StepGuard)
    """Decides which steps are skipped."""
    updates_before: int = 0
    """Of the optimizer whose averages the stage began with."""
    left_out_from: Cursor | None = None
    """Where data were left out by a rollback, up to the cursor, since the last step."""

    @property
    def updates(self) -> int:
        """Updates that the optimizer's averages have seen."""
        return self.updates_before + self.step - self.guard.skipped
