"""SmolTalk: conversations on many subjects, from which a model learns to be an assistant."""

from typing import Literal

import pyarrow as pa

from evals.hub import local_files, read_table
from nanoray.config import DataError
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
        self.hub_files = local_files(dataset, "default", split, hub_dir)
        self.conversations = table["messages"]
        kind = self.conversations.type
        fields = kind.value_type.names if pa.types.is_list(kind) else []
        if not {"role", "content"} <= set(fields):
            raise DataError(
                f"{dataset} holds {kind} in the column messages, and not lists of structs with "
                "role and content. Give another --hub-dir."
            )

    def __len__(self) -> int:
        """Give the number of conversations."""
        return len(self.order)

    def example(self, index: int) -> Example:
        """Give one conversation."""
        row = int(self.order[index])
        try:
            messages = self.conversations[row].as_py()
        except UnicodeDecodeError as error:
            raise DataError(f"SmolTalk, row {row} is not UTF-8 ({error}).") from error
        return Example(
            tuple({"role": message["role"], "content": message["content"]} for message in messages)
        )
