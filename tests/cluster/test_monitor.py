import time

from nanoray.cluster.monitor import Beat, Monitor
from nanoray.cluster.recovery import Cause, Failure
from nanoray.config import InputError
from nanoray.train.world import Wish


def beat_of(rank: int, doing: str = "step 3") -> Beat:
    return Beat(
        rank, 100 + rank, born=0.0, node="n", doing=doing, age_seconds=0.0, is_training=True
    )


def test_news_are_given_once_and_in_their_order() -> None:
    monitor = Monitor()
    for step in (1, 2):
        monitor.step({"step": step})
        monitor.log(f"saved step {step}")

    first, second = monitor.take(), monitor.take()

    assert first == ([{"step": 1}, {"step": 2}], ["saved step 1", "saved step 2"])
    assert second == ([], [])


def test_a_silence_is_as_long_as_the_newest_sign_of_life_is_old() -> None:
    monitor = Monitor()
    monitor.beat(beat_of(0))
    time.sleep(0.2)
    monitor.beat(beat_of(1))
    monitor.beat(beat_of(1, "validation"))

    silences = {beat.rank: beat for beat in monitor.silences()}

    assert silences[0].age_seconds >= 0.2 > silences[1].age_seconds
    assert silences[1].doing == "validation"


def test_a_rank_that_has_done_its_work_is_silent_without_harm() -> None:
    monitor = Monitor()
    monitor.beat(beat_of(0))
    monitor.beat(beat_of(1))

    monitor.leave(1)
    monitor.leave(7)

    assert [beat.rank for beat in monitor.silences()] == [0]


def test_what_a_rank_says_itself_holds_over_what_ray_says_of_it() -> None:
    monitor = Monitor()
    ray_says = Failure(Cause.LOST, 1, "the actor died")
    told = Failure(Cause.BUG, 1, "ValueError: no")

    monitor.fail(ray_says, first_hand=False)
    monitor.fail(told, first_hand=True)
    monitor.fail(ray_says, first_hand=False)

    assert monitor.begin_start() == [told]


def test_a_new_start_knows_nothing_of_the_workers_before_it() -> None:
    monitor = Monitor()
    monitor.beat(beat_of(0))
    monitor.fail(Failure(Cause.LOST, 0, "gone"), first_hand=False)

    failures = monitor.begin_start()

    assert len(failures) == 1
    assert monitor.silences() == []


def test_a_start_that_failed_before_there_were_workers_counts_too() -> None:
    monitor = Monitor()
    assert monitor.begin_start() == []

    [failure] = monitor.begin_start()

    assert failure == Failure(Cause.LOST, 0, "the workers could not be started")


def test_the_error_that_ends_a_run_is_kept_for_the_driver() -> None:
    monitor = Monitor()

    monitor.finish(InputError("--depth 0 is too small"))

    assert str(monitor.finished()) == "--depth 0 is too small"


def test_after_a_failure_nobody_is_watched_and_a_silence_explains_nothing() -> None:
    monitor = Monitor()
    monitor.begin_start()
    for rank in (0, 1):
        monitor.beat(beat_of(rank))
    assert [beat.rank for beat in monitor.watched()] == [0, 1]
    assert monitor.holds_workers()

    memory = Failure(Cause.MEMORY, 1, "no room")
    monitor.fail(memory, first_hand=True)
    monitor.fail(Failure(Cause.HANG, 1, "silent"), first_hand=True)

    assert monitor.watched() == []
    assert not monitor.holds_workers()
    assert monitor.begin_start() == [memory]


def test_a_loss_after_a_notice_is_a_preemption_also_where_nobody_tells_of_it() -> None:
    monitor = Monitor()
    monitor.begin_start()
    lost = Failure(Cause.LOST, 0, "connection closed by peer")

    causes = []
    for failures in ([lost], [], [lost, Failure(Cause.BUG, 1, "ValueError")]):
        monitor.ask_to_save(1)
        for failure in failures:
            monitor.fail(failure, first_hand=True)
        causes.append([each.cause for each in monitor.begin_start()])
    monitor.fail(lost, first_hand=True)

    assert causes == [[Cause.PREEMPTION], [Cause.PREEMPTION], [Cause.LOST, Cause.BUG]]
    assert [each.cause for each in monitor.begin_start()] == [Cause.LOST]


def test_rank_0_is_asked_once_to_save_and_others_never() -> None:
    monitor = Monitor()
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
