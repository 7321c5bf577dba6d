"""The driver's watch over its workers: their news are shown, and every guard has its look.

Nothing that goes wrong here may end the training, or the rest of the watch.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import ray

from nanoray.cluster.background import repeated
from nanoray.cluster.reservations import Reservations
from nanoray.data.feed import Actor

logger = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
"""Between two looks at the news: each costs the training on a small machine."""


@contextlib.contextmanager
def watch(
    monitor: Actor,
    listeners: list[Callable[[dict[str, Any]], None]],  # Any: JSON
    say: Callable[[str], None],
    guards: list[Callable[[], None]],
    reservations: Reservations,
) -> Iterator[None]:
    """Show the news of the workers, and look after them, for as long as the context lasts."""
    attempts = Attempts(say)

    def show_news() -> None:
        steps, lines = ray.get(monitor.take.remote())
        for line in lines:
            say(line)
        for values in steps:
            for listen in listeners:
                attempts.make(listen, values)
        if steps and reservations.names is None:
            attempts.make(lambda: reservations.record(ray.get(monitor.reservation.remote())))

    def look() -> None:
        for work in (show_news, *guards):
            attempts.make(work)

    try:
        with repeated(look, WATCH_SECONDS, "watch"):
            yield
    finally:
        attempts.make(show_news)


class Attempts:
    """Calls what must not keep the rest of the watch from going on, whatever it raises."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.told: set[str] = set()

    def make(self, work: Callable[..., object], *arguments: object) -> None:
        """Call it; an error of Ray is of a cluster that is busy, or has gone: `fit` raises then."""
        try:
            work(*arguments)
        except ray.exceptions.RayError as error:
            logger.debug("%s: %r", work, error)
        except Exception as error:  # of a storage, of a terminal, or ours
            line = f"warning: the watch over the run goes on after {type(error).__name__}: {error}"
            if line not in self.told:
                self.told.add(line)
                self.say(line)
