"""Blocks: handed out, shared, given back, found again."""

import random

from nanoray.inference.blocks import NULL_BLOCK, BlockManager, BlockTable, extend_digest


def computed(manager: BlockManager, tokens: list[int]) -> BlockTable:
    """Take blocks for tokens as a sequence does, and let others find them."""
    table = BlockTable()
    manager.take_prefix(table, tokens)
    assert manager.grow(table, len(tokens))
    manager.share(table, tokens)
    return table


def test_a_table_grows_by_whole_blocks_and_no_block_is_handed_out_twice() -> None:
    manager = BlockManager(6, 4)
    first, second = BlockTable(), BlockTable()

    grown = [manager.grow(first, 5), manager.grow(second, 8), manager.grow(first, 8)]

    assert grown == [True, True, True]
    assert len({*first.blocks, *second.blocks}) == 4
    assert NULL_BLOCK not in first.blocks + second.blocks
    assert manager.num_unused == 1


def test_a_table_that_finds_no_room_is_left_as_it_was() -> None:
    manager = BlockManager(4, 4)
    table = BlockTable()
    manager.grow(table, 4)

    grown = manager.grow(table, 17)

    assert not grown
    assert (len(table.blocks), manager.num_unused) == (1, 2)


def test_a_prefix_is_found_up_to_the_last_full_block_that_is_equal() -> None:
    manager = BlockManager(20, 4)
    first = computed(manager, [*range(10)])
    second = BlockTable()

    found = manager.take_prefix(second, [*range(6), 99, 7, 8, 9])

    assert found == 4
    assert second.blocks == first.blocks[:1]


def test_at_least_one_token_is_left_to_compute() -> None:
    manager = BlockManager(20, 4)
    computed(manager, [*range(8)])
    again = BlockTable()

    assert manager.take_prefix(again, [*range(8)]) == 4


def test_equal_blocks_after_different_beginnings_are_not_shared() -> None:
    manager = BlockManager(20, 4)
    computed(manager, [1, 1, 1, 1, 5, 5, 5, 5, 0])
    other = BlockTable()

    assert manager.take_prefix(other, [2, 2, 2, 2, 5, 5, 5, 5, 0]) == 0


def test_blocks_that_were_given_back_are_found_until_they_are_handed_out_anew() -> None:
    manager = BlockManager(5, 4)
    manager.release(computed(manager, [*range(9)]))
    again, other = BlockTable(), BlockTable()

    found = manager.take_prefix(again, [*range(9)])
    manager.release(again)
    manager.grow(other, 16)
    lost = manager.take_prefix(BlockTable(), [*range(9)])

    assert (found, lost) == (8, 0)


def test_a_shared_block_is_unused_only_when_nobody_uses_it() -> None:
    manager = BlockManager(10, 4)
    first, second = (computed(manager, [*range(5)]) for _ in range(2))
    shared = first.blocks[0]

    manager.release(first)
    while_used = shared in manager.unused
    manager.release(second)

    assert second.blocks == []
    assert (while_used, shared in manager.unused) == (False, True)


def test_only_blocks_with_new_content_are_to_be_cleared() -> None:
    manager = BlockManager(10, 4)
    first = computed(manager, [*range(9)])
    taken = manager.drain_taken()

    second = computed(manager, [*range(9)])

    assert sorted(taken) == sorted(first.blocks)
    assert manager.drain_taken() == second.blocks[2:]
    assert manager.drain_taken() == []


def test_with_other_weights_nothing_is_found() -> None:
    manager = BlockManager(10, 4)
    manager.release(computed(manager, [*range(9)]))

    manager.forget_all()

    assert manager.take_prefix(BlockTable(), [*range(9)]) == 0


def test_names_depend_on_all_tokens_and_their_order() -> None:
    names = {
        extend_digest(parent, tokens)
        for parent in (b"", b"x")
        for tokens in ([1, 2], [2, 1], [1], [258], [1, 2, 0])
    }

    assert len(names) == 10


def test_after_any_use_every_block_is_unused_or_counted() -> None:
    rng = random.Random(0)
    manager = BlockManager(30, 4)
    tables: list[BlockTable] = []

    for _ in range(2_000):
        if rng.random() < 0.5:
            table = BlockTable()
            tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 30))]
            manager.take_prefix(table, tokens)
            if manager.grow(table, len(tokens)):
                manager.share(table, tokens[: rng.randrange(len(tokens) + 1)])
                tables.append(table)
            else:
                manager.release(table)
        elif tables:
            manager.release(tables.pop(rng.randrange(len(tables))))
        counts = [0] * 30
        for table in tables:
            for block in table.blocks:
                counts[block] += 1
        assert manager.users == counts
        assert set(manager.unused) == {block for block in range(1, 30) if not counts[block]}
        assert {manager.block_of[d]: d for d in manager.block_of} == manager.digest_of
