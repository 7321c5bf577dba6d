"""Who trains at a time."""

import asyncio

from nanoray.ops.admission import Admission


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_trials_that_fit_together_train_together() -> None:
    async def story() -> list[str]:
        admission = Admission(8)
        for name in "abcdefgh":
            assert await admission.enter(name, 1) == ""
        late = asyncio.create_task(admission.enter("i", 1))
        await settled()
        assert not late.done()
        await admission.leave("c")
        assert await late == ""
        return await admission.names_inside()

    assert asyncio.run(story()) == list("abdefghi")


def test_a_trial_waits_until_there_is_room_for_all_its_workers() -> None:
    async def story() -> None:
        admission = Admission(8)
        await admission.enter("one", 1)
        large = asyncio.create_task(admission.enter("large", 8))
        await settled()
        assert await admission.names_inside() == ["one"]
        await admission.leave("one")
        await large
        assert await admission.names_inside() == ["large"]

    asyncio.run(story())


def test_the_largest_that_fits_goes_first() -> None:
    async def story() -> list[str]:
        admission = Admission(4)
        await admission.enter("first", 4)
        waiting = [
            asyncio.create_task(admission.enter(name, n))
            for name, n in (("small", 1), ("middle", 3), ("huge", 5))
        ]
        await settled()
        await admission.leave("first")
        await settled()
        inside = await admission.names_inside()
        waiting[2].cancel()
        return inside

    assert asyncio.run(story()) == ["middle", "small"]


def test_a_trial_whose_driver_was_lost_takes_its_old_place() -> None:
    async def story() -> list[str]:
        admission = Admission(2)
        await admission.enter("a", 2)
        await admission.enter("a", 2)
        return await admission.names_inside()

    assert asyncio.run(story()) == ["a"]


def test_when_it_is_closed_nobody_goes_in_and_all_hear_why() -> None:
    async def story() -> list[str]:
        admission = Admission(1)
        await admission.enter("a", 1)
        waiting = asyncio.create_task(admission.enter("b", 1))
        await settled()
        await admission.close("the money is spent")
        await admission.close("later")
        assert await admission.why_over() == ""
        told = [await waiting, await admission.enter("c", 1), *await admission.names_inside()]
        await admission.leave("a")
        return [*told, await admission.why_over()]

    why = "the money is spent"
    assert asyncio.run(story()) == [why, why, "a", why]
