"""The blocks of the KV cache: who owns which, and which are shared.

A block holds the keys and values of `block_size` tokens in all layers. A full block is known by all
the tokens up to its end, so a sequence that begins like an earlier one takes the earlier one's
blocks instead of computing its own. Blocks that nobody uses keep what they hold until they are
needed, the longest unused first. (Scheme: vLLM.) Nothing here knows tensors.
"""

import hashlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field

NULL_BLOCK = 0
"""Stands in tables where a sequence has no block; belongs to nobody and stays zero."""


@dataclass
class BlockTable:
    """The blocks of one sequence, in the order of its tokens."""

    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """Of its full, computed blocks: names of all tokens up to their ends."""


class BlockManager:
    """Hands out blocks, counts who uses each, and finds those that hold a wanted prefix."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks > 1, f"{num_blocks} blocks, and one of them belongs to nobody"
        self.num_blocks, self.block_size = num_blocks, block_size
        self.users = [0] * num_blocks
        self.unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self.digest_of: dict[int, bytes] = {}
        self.block_of: dict[bytes, int] = {}
        self.taken: list[int] = []
        """Blocks that were handed out for new content since `drain_taken`."""

    @property
    def num_unused(self) -> int:
        """Blocks that could be handed out."""
        return len(self.unused)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences use, 0 to 1."""
        return 1 - len(self.unused) / (self.num_blocks - 1)

    def blocks_for(self, num_tokens: int) -> int:
        """Give how many blocks so many tokens need."""
        return -(-num_tokens // self.block_size)

    def take_prefix(self, table: BlockTable, tokens: list[int]) -> int:
        """Give an empty table the blocks that already hold its first tokens; says how many.

        At least one token is left to compute, because its logits are wanted.
        """
        assert not table.blocks, "a prefix is taken before anything else"
        digest = b""
        for end in range(self.block_size, len(tokens), self.block_size):
            digest = extend_digest(digest, tokens[end - self.block_size : end])
            block = self.block_of.get(digest)
            if block is None:
                break
            self.users[block] += 1
            self.unused.pop(block, None)
            table.blocks.append(block)
            table.digests.append(digest)
        return len(table.blocks) * self.block_size

    def grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Give a table room for `num_tokens` in all; False, and nothing done, if there is none."""
        missing = self.blocks_for(num_tokens) - len(table.blocks)
        if missing > len(self.unused):
            return False
        for _ in range(missing):
            block, _ = self.unused.popitem(last=False)
            self._forget(block)
            self.users[block] = 1
            table.blocks.append(block)
            self.taken.append(block)
        return True

    def share(self, table: BlockTable, tokens: list[int]) -> None:
        """Let others find the full blocks of a table whose `tokens` are all computed."""
        for index in range(len(table.digests), len(tokens) // self.block_size):
            start = index * self.block_size
            parent = table.digests[-1] if table.digests else b""
            digest = extend_digest(parent, tokens[start : start + self.block_size])
            table.digests.append(digest)
            if digest not in self.block_of:
                self.block_of[digest] = table.blocks[index]
                self.digest_of[table.blocks[index]] = digest

    def release(self, table: BlockTable) -> None:
        """Give the blocks of a table back; its last ones are reused first."""
        for block in reversed(table.blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.unused[block] = None
        table.blocks, table.digests = [], []

    def drain_taken(self) -> list[int]:
        """Give the blocks handed out since the last call: what they hold is to be cleared."""
        taken, self.taken = self.taken, []
        return taken

    def forget_all(self) -> None:
        """Let no block be found any more: what they hold was computed with other weights."""
        self.digest_of, self.block_of = {}, {}

    def _forget(self, block: int) -> None:
        """Let a block not be found any more."""
        digest = self.digest_of.pop(block, None)
        if digest is not None:
            del self.block_of[digest]


def extend_digest(parent: bytes, tokens: list[int]) -> bytes:
    """Name a block by the name of the one before it and its own tokens; names never collide."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()
