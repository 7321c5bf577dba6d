"""All that a resume needs.

There is no state of a random generator: whatever is drawn at random follows from the seed and a
step or position, so that it can be drawn again.
"""

from dataclasses import dataclass, field

from nanoray.data.plan import Cursor
from nanoray.model.gpt import GPT
from nanoray.train.optimizer import MuonAdamW


@dataclass
class TrainState:
    """A run between two steps."""

    model: GPT
    optimizer: MuonAdamW
    step: int = 0
    """Updates made."""
    tokens: int = 0
    """Targets learned from."""
    cursor: Cursor = field(default_factory=Cursor)
    """The next row of the data plan."""
