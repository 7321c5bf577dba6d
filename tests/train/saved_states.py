"""States to be saved, and checkpointers that save them."""

from typing import Any

from nanoray.data.plan import Cursor
from nanoray.storage import StageFolder
from nanoray.train.checkpoint import Checkpointer, SavePolicy
from nanoray.train.state import TrainState
from nanoray.train.world import LocalWorld, World
from tests.train.tiny_run import scramble, tiny_state

FACTS = {"model": {"num_layers": 2, "window": None}, "tokenizer_hash": "abc", "data_hash": "def"}


def open_checkpoints(
    folder: StageFolder,
    world: World | None = None,
    attempt: int | None = None,
    facts: dict[str, Any] | None = None,
    **policy: Any,
) -> Checkpointer:
    return Checkpointer(
        folder,
        world or LocalWorld(),
        attempt=attempt or folder.run.begin_attempt("pretrain"),
        facts=FACTS if facts is None else facts,
        policy=SavePolicy(**policy),
    )


def state_at(step: int, seed: int = 0, **fields: Any) -> TrainState:
    """Give a state that says where it stands."""
    state = tiny_state(**fields)
    scramble(state, seed)
    state.step, state.tokens, state.cursor = step, 1000 * step, Cursor(3 * step, step % 5)
    return state
