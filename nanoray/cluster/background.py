"""Work that a driver does again and again beside what it waits for."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def repeated(work: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Do some work every so many seconds, in a thread, for as long as the context lasts.

    What it raises ends the thread.
    """
    done = threading.Event()

    def loop() -> None:
        while not done.wait(seconds):
            work()

    thread = threading.Thread(target=loop, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
