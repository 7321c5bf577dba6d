import threading
import time
from itertools import pairwise

from nanoray.cluster.background import repeated


def test_work_is_repeated_until_the_context_ends():
    times: list[float] = []
    thrice = threading.Event()

    def work() -> None:
        times.append(time.monotonic())
        if len(times) == 3:
            thrice.set()

    with repeated(work, 0.01, "work"):
        assert thrice.wait(timeout=30)
    done = len(times)
    time.sleep(0.05)

    assert len(times) == done
    assert all(later - sooner >= 0.01 for sooner, later in pairwise(times))
