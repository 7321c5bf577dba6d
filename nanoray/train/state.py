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
    updates: int = 0
    """How often the optimizer's averages were updated: the correction of their bias goes by it."""
    left_out_from: Cursor | None = None
    """Where data were left out by a rollback, up to the cursor, since the last step."""
