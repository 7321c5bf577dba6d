"""Who computes how many tokens in the next step: continuous batching with a budget of tokens.

Sequences that need one token come first, so that a long prompt delays nobody's next token; prompts
take what is left of the budget, in chunks. When blocks run out, the newest sequence gives its own
back, and is computed again later. (Scheme: vLLM.) Nothing here knows tensors.
"""

from collections import deque
from dataclasses import dataclass

from nanoray.inference.blocks import BlockManager
from nanoray.inference.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens start..end of a sequence, which are to be computed together."""

    sequence: Sequence
    start: int
    end: int

    @property
    def reaches_end(self) -> bool:
        """Whether the next token can be drawn after it."""
        return self.end == len(self.sequence.tokens)


class Scheduler:
    """Waiting and running sequences; decides what each step computes."""

    def __init__(self, blocks: BlockManager, max_sequences: int, step_tokens: int) -> None:
        assert step_tokens >= max_sequences, "each running sequence needs its token of a step"
        self.blocks = blocks
        self.max_sequences, self.step_tokens = max_sequences, step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """The oldest first."""
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, wherever it stands."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.blocks.release(sequence.table)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """Choose what the next step computes, single tokens first; the blocks for it are taken."""
        budget = self.step_tokens
        chunks: list[Chunk] = []
        for single in (True, False):
            for sequence in list(self.running):
                if (sequence.num_pending == 1) != single or sequence not in self.running:
                    continue
                count = min(sequence.num_pending, budget)
                if count and self._make_room(sequence, sequence.num_computed + count, chunks):
                    chunks.append(self._chunk(sequence, count))
                    budget -= count
        while budget and (admitted := self._admit()):
            count = min(admitted.num_pending, budget)
            chunks.append(self._chunk(admitted, count))
            budget -= count
        return sorted(chunks, key=lambda chunk: chunk.end - chunk.start > 1)

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks away; it is computed anew, before all that wait."""
        self.running.remove(sequence)
        self.blocks.release(sequence.table)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def preempt_all(self) -> None:
        """Take all blocks away; the order of the sequences stays."""
        for sequence in reversed(list(self.running)):
            self.preempt(sequence)

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        return Chunk(sequence, sequence.num_computed, sequence.num_computed + count)

    def _make_room(self, sequence: Sequence, num_tokens: int, chunks: list[Chunk]) -> bool:
        """Get blocks for a running sequence, from the newest ones if need be."""
        while not self.blocks.grow(sequence.table, num_tokens):
            scheduled = {id(chunk.sequence) for chunk in chunks}
            victim = next(one for one in reversed(self.running) if id(one) not in scheduled)
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def _admit(self) -> Sequence | None:
        """Let the first sequence run that can, with blocks for all its tokens; None if none can."""
        if len(self.running) >= self.max_sequences:
            return None
        for sequence in self.waiting:
            if sequence.leader is not None and not sequence.leader.is_prompt_computed:
                continue  # its prompt is being computed; whoever waits behind may go first
            found = 0
            if not sequence.params.prompt_logprobs:  # they need each token to be computed
                found = self.blocks.take_prefix(sequence.table, sequence.tokens)
            if not self.blocks.grow(sequence.table, len(sequence.tokens)):
                self.blocks.release(sequence.table)
                return None
            sequence.num_computed = found
            if sequence.num_generated == 0:
                sequence.cached_tokens = found
            self.waiting.remove(sequence)
            self.running.append(sequence)
            return sequence
        return None
