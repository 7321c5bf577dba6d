"""SmolTalk: conversations on many subjects, from which a model learns to be an assistant."""

from typing import Literal

from evals.hub import read_table
from nanoray.task import Example


class SmolTalk:
    """Conversations of several turns (460,341 to train on), some with a system message first.

    They stay in a table, as they are stored; one becomes Python objects when it is asked for. There
    is no right answer to compare with, so this is to learn from only.
    """

    name: str = "SmolTalk"

    def __init__(self, split: Literal["train", "test"], hub_dir: str | None = None) -> None:
        dataset = "HuggingFaceTB/smol-smoltalk"
        table, self.order = read_table(dataset, "default", split, hub_dir, columns=("messages",))
        self.conversations = table["messages"]

    def __len__(self) -> int:
        """Give the number of conversations."""
        return len(self.order)

    def example(self, index: int) -> Example:
        """Give one conversation."""
        messages = self.conversations[int(self.order[index])].as_py()
        return Example(
            tuple({"role": message["role"], "content": message["content"]} for message in messages)
        )
