"""Who computes what in a step; no tensor is needed to know."""

from nanoray.inference.blocks import BlockManager
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.scheduler import Scheduler
from nanoray.inference.sequence import FinishReason, Sequence
from nanoray.inference.text_stream import TextStream


def make_scheduler(num_blocks: int = 100, max_sequences: int = 8, step_tokens: int = 16):
    return Scheduler(BlockManager(num_blocks, 4), max_sequences, step_tokens)


def make_sequence(name: int, num_tokens: int, leader: Sequence | None = None) -> Sequence:
    """A sequence whose tokens are its own, so that none shares a prefix."""
    tokens = [name * 1000 + i for i in range(num_tokens)]
    params = SamplingParams(max_tokens=100)
    return Sequence(name, 0, tokens, num_tokens, params, TextStream(), leader=leader)


def step(scheduler: Scheduler) -> dict[int, tuple[int, int]]:
    """Do one step as the engine does; gives start and end of each request's chunk, in order."""
    chunks = scheduler.schedule()
    for chunk in chunks:
        sequence = chunk.sequence
        sequence.num_computed = chunk.end
        if chunk.reaches_end:
            sequence.tokens.append(7)
    assert sum(chunk.end - chunk.start for chunk in chunks) <= scheduler.step_tokens
    return {chunk.sequence.request: (chunk.start, chunk.end) for chunk in chunks}


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, 35))

    assert [step(scheduler) for _ in range(4)] == [
        {1: (0, 16)},
        {1: (16, 32)},
        {1: (32, 35)},
        {1: (35, 36)},
    ]


def test_running_sequences_get_their_token_before_a_long_prompt_gets_its_chunk() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, 3))
    step(scheduler)

    scheduler.add(make_sequence(2, 40))
    scheduler.add(make_sequence(3, 2))
    steps = [step(scheduler) for _ in range(4)]

    assert steps == [
        {1: (3, 4), 2: (0, 15)},
        {1: (4, 5), 2: (15, 30)},
        {1: (5, 6), 2: (30, 40), 3: (0, 2)},
        {1: (6, 7), 2: (40, 41), 3: (2, 3)},
    ]


def test_single_tokens_stand_before_longer_chunks() -> None:
    scheduler = make_scheduler()
    for sequence in (make_sequence(1, 3), make_sequence(2, 1), make_sequence(3, 5)):
        scheduler.add(sequence)

    chunks = scheduler.schedule()

    assert [chunk.sequence.request for chunk in chunks] == [2, 1, 3]


def test_no_more_run_than_may() -> None:
    scheduler = make_scheduler(max_sequences=2)
    sequences = [make_sequence(name, 2) for name in (1, 2, 3)]
    for sequence in sequences:
        scheduler.add(sequence)

    first = step(scheduler)
    scheduler.remove(sequences[0])
    second = step(scheduler)

    assert (list(first), list(second)) == ([1, 2], [2, 3])


def test_when_blocks_run_out_the_newest_gives_way_and_comes_back_first() -> None:
    scheduler = make_scheduler(num_blocks=5)
    old, new = make_sequence(1, 7), make_sequence(2, 7)
    scheduler.add(old)
    scheduler.add(new)
    scheduler.add(make_sequence(3, 1))
    steps = [step(scheduler) for _ in range(3)]

    assert steps == [{1: (0, 7), 2: (0, 7)}, {1: (7, 8), 2: (7, 8)}, {1: (8, 9)}]
    assert scheduler.num_preemptions == 1
    assert [sequence.request for sequence in scheduler.waiting] == [2, 3]
    scheduler.remove(old)
    assert step(scheduler) == {2: (0, 9), 3: (0, 1)}
    assert new.num_generated == 3


def test_a_waiting_prompt_that_finds_no_blocks_lets_nobody_pass() -> None:
    scheduler = make_scheduler(num_blocks=5)
    scheduler.add(make_sequence(1, 8))
    scheduler.add(make_sequence(2, 12))
    scheduler.add(make_sequence(3, 1))

    first = step(scheduler)

    assert first == {1: (0, 8)}


def test_other_samples_wait_until_the_prompt_is_computed_and_whoever_is_behind_goes_first() -> None:
    scheduler = make_scheduler(step_tokens=10)
    leader = make_sequence(1, 13)
    sibling = Sequence(2, 1, leader.tokens[:], 13, leader.params, TextStream(), leader=leader)
    for sequence in (leader, sibling, make_sequence(3, 4)):
        scheduler.add(sequence)

    first = scheduler.schedule()
    leader.num_computed = first[0].end
    second = scheduler.schedule()
    leader.num_computed = 13
    scheduler.blocks.share(leader.table, leader.tokens)
    leader.tokens.append(7)
    third = scheduler.schedule()

    assert [chunk.sequence.request for chunk in first] == [1]
    assert [chunk.sequence.request for chunk in second] == [1, 3]
    assert [(c.sequence.request, c.start, c.end) for c in third if c.sequence is sibling] == [
        (2, 12, 13)
    ]


def test_other_samples_do_not_wait_for_one_that_ended() -> None:
    scheduler = make_scheduler()
    leader = make_sequence(1, 13)
    sibling = make_sequence(2, 3, leader)
    scheduler.add(leader)
    scheduler.add(sibling)

    scheduler.remove(leader)
    leader.finish_reason = FinishReason.ABORT

    assert step(scheduler) == {2: (0, 3)}


def test_taking_all_blocks_away_keeps_the_order() -> None:
    scheduler = make_scheduler()
    for name in (1, 2, 3):
        scheduler.add(make_sequence(name, 2))
    step(scheduler)

    scheduler.preempt_all()

    assert [sequence.request for sequence in scheduler.waiting] == [1, 2, 3]
    assert scheduler.blocks.usage == 0
    assert step(scheduler) == {1: (0, 3), 2: (0, 3), 3: (0, 3)}
