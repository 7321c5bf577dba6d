import time

import pytest

from nanoray.cluster.monitor import Beat, Monitor, Start
from nanoray.cluster.recovery import Cause, Failure
from nanoray.config import InputError
from nanoray.train.world import Wish


def beat_of(rank: int, doing: str = "step 3", attempt: int = 1) -> Beat:
    return Beat(attempt, rank, 100 + rank, 0.0, "n", doing, 0.0, is_training=True)


def monitor_of(attempt: int = 1) -> Monitor:
    """Give a monitor whose group of this attempt is there."""
    monitor = Monitor()
    begin(monitor, attempt)
    return monitor


def begin(monitor: Monitor, attempt: int) -> list[Failure]:
    failures = monitor.end_group()[1]
    monitor.begin_group(Start(attempt, 0, 8))
    return failures


def test_news_are_given_once_and_in_their_order() -> None:
    monitor = monitor_of()
    for step in (1, 2):
        monitor.step(1, {"step": step})
        monitor.log(f"saved step {step}")

    first, second = monitor.take(), monitor.take()

    assert first == ([{"step": 1}, {"step": 2}], ["saved step 1", "saved step 2"])
    assert second == ([], [])


def test_a_silence_is_as_long_as_the_newest_sign_of_life_is_old() -> None:
    monitor = monitor_of()
    monitor.beat(beat_of(0))
    time.sleep(0.2)
    monitor.beat(beat_of(1))
    monitor.beat(beat_of(1, "validation"))

    silences = {beat.rank: beat for beat in monitor.silences()}

    assert silences[0].age_seconds >= 0.2 > silences[1].age_seconds
    assert silences[1].doing == "validation"


def test_a_rank_that_has_done_its_work_is_silent_without_harm() -> None:
    monitor = monitor_of()
    monitor.beat(beat_of(0))
    monitor.beat(beat_of(1))

    monitor.leave(1, 1)
    monitor.leave(1, 7)

    assert [beat.rank for beat in monitor.silences()] == [0]


def test_what_a_rank_says_itself_holds_over_what_ray_says_of_it() -> None:
    monitor = monitor_of()
    ray_says = Failure(Cause.LOST, 1, "the actor died")
    told = Failure(Cause.BUG, 1, "ValueError: no")

    monitor.fail(1, ray_says, first_hand=False)
    monitor.fail(1, told, first_hand=True)
    monitor.fail(1, ray_says, first_hand=False)

    assert monitor.end_group()[1] == [told]


def test_a_new_start_knows_nothing_of_the_workers_before_it() -> None:
    monitor = monitor_of()
    monitor.beat(beat_of(0))
    monitor.fail(1, Failure(Cause.LOST, 0, "gone"), first_hand=False)

    failures = monitor.end_group()[1]

    assert len(failures) == 1
    assert monitor.silences() == []


def test_a_start_that_failed_before_there_were_workers_counts_too() -> None:
    monitor = Monitor()
    assert begin(monitor, 1) == []

    [failure] = monitor.end_group()[1]

    assert failure == Failure(Cause.LOST, 0, "the workers could not be started")


def test_the_error_that_ends_a_run_is_kept_for_the_driver() -> None:
    monitor = Monitor()

    monitor.finish(None, InputError("--depth 0 is too small"))

    assert str(monitor.finished()) == "--depth 0 is too small"


def test_after_a_failure_nobody_is_watched_and_a_silence_explains_nothing() -> None:
    monitor = monitor_of()
    for rank in (0, 1):
        monitor.beat(beat_of(rank))
    assert [beat.rank for beat in monitor.watched()] == [0, 1]

    memory = Failure(Cause.MEMORY, 1, "no room")
    monitor.fail(1, memory, first_hand=True)
    monitor.fail(1, Failure(Cause.HANG, 1, "silent"), first_hand=True)

    assert monitor.watched() == []
    assert monitor.end_group()[1] == [memory]


def test_groups_cost_their_own_price_from_their_workers_to_their_first_failure() -> None:
    now = [0.0]
    monitor = Monitor(clock=lambda: now[0])
    lost = Failure(Cause.LOST, 1, "gone")

    spent = []
    for dollars_per_second in (32, 8, 16):
        now[0] += 1000  # waits for machines
        monitor.end_group()
        now[0] += 10  # reads the checkpoint
        monitor.hold(3600.0 * dollars_per_second)
        now[0] += 5
        monitor.fail(None, lost, first_hand=False)
        now[0] += 3
        monitor.fail(None, lost, first_hand=True)
        spent.append(monitor.dollars())

    assert spent == pytest.approx([32 * 5, 40 * 5, 56 * 5])
    monitor.end_group()
    monitor.hold(3600.0)
    now[0] += 7
    assert monitor.dollars() == pytest.approx(56 * 5 + 7)


def test_a_loss_after_a_notice_is_a_preemption_also_where_nobody_tells_of_it() -> None:
    monitor = monitor_of()
    lost = Failure(Cause.LOST, 0, "connection closed by peer")

    causes = []
    for failures in ([lost], [], [lost, Failure(Cause.BUG, 1, "ValueError")]):
        monitor.ask_to_save(1)
        for failure in failures:
            monitor.fail(1, failure, first_hand=True)
        causes.append([each.cause for each in begin(monitor, 1)])
    monitor.fail(1, lost, first_hand=True)

    assert causes == [[Cause.PREEMPTION], [Cause.PREEMPTION], [Cause.LOST, Cause.BUG]]
    assert [each.cause for each in monitor.end_group()[1]] == [Cause.LOST]


def test_rank_0_is_asked_once_to_save_and_others_never() -> None:
    monitor = monitor_of()
    monitor.ask_to_save(1)

    wishes = [monitor.beat(beat_of(rank)) for rank in (1, 0, 0)]

    assert wishes == [Wish.NONE, Wish.SAVE, Wish.NONE]
    monitor.ask_to_save(2)
    monitor.ask_to_stop("enough")
    assert monitor.beat(beat_of(0)) is Wish.STOP
    assert monitor.take()[1][:2] == [
        "a node of this run will be taken away: saving, and training on",
        "2 nodes of this run will be taken away: saving, and training on",
    ]


def test_what_workers_of_an_earlier_attempt_say_late_is_nothing_of_the_group_that_is_there() -> (
    None
):
    monitor = monitor_of(1)
    monitor.beat(beat_of(1))
    monitor.fail(None, Failure(Cause.LOST, 1, "gone"), first_hand=False)
    begin(monitor, 2)
    monitor.beat(beat_of(0, attempt=2))

    monitor.beat(beat_of(1, attempt=1))  # of a larger group
    monitor.fail(1, Failure(Cause.BUG, 1, "attempt 2 has replaced attempt 1"), first_hand=True)
    monitor.finish(1, InputError("of attempt 1"))
    monitor.leave(1, 0)
    monitor.step(1, {"step": 9})

    assert [beat.rank for beat in monitor.watched()] == [0]
    assert monitor.finished() is None
    assert monitor.take()[0] == []
    monitor.fail(2, Failure(Cause.LOST, 0, "reset"), first_hand=True)
    assert [failure.cause for failure in monitor.end_group()[1]] == [Cause.LOST]


def test_between_two_groups_nobody_is_listened_to() -> None:
    monitor = monitor_of(1)
    monitor.end_group()

    monitor.fail(1, Failure(Cause.REPLACED, 0, "attempt 2 has replaced attempt 1"), first_hand=True)
    monitor.beat(beat_of(0))

    assert (monitor.silences(), monitor.newest_start()) == ([], None)
    assert monitor.end_group() == (1, [])


def test_why_a_group_could_not_be_started_counts_although_it_never_began() -> None:
    monitor = Monitor()
    why = Failure(Cause.LOST, 0, "the workers could not be started: the actor died")

    monitor.fail(None, why, first_hand=False)

    assert monitor.end_group() == (0, [why])
    monitor.begin_attempt(4)
    monitor.fail(None, why, first_hand=False)
    assert monitor.end_group() == (4, [why])


def test_the_rows_that_were_decided_stay() -> None:
    monitor = monitor_of()
    assert monitor.rows(8) == 8

    monitor.take_rows(4)

    assert monitor.rows(8) == 4
