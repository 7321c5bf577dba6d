"""Workers that were asked for and do not come: the driver says for what they wait.

Ray waits for them without a word, for as long as it takes: an autoscaler may need minutes for a
node, and a spot market hours.
"""

import time
from collections.abc import Callable

import ray
from ray.util import placement_group_table

from nanoray.cluster.connection import Resources, cluster_total
from nanoray.cluster.monitor import Beat
from nanoray.cluster.turns import TELL_SECONDS, amount
from nanoray.data.feed import Actor
from nanoray.progress import duration

LOOK_SECONDS = 5.0
QUIET_SECONDS = 10.0
"""Ranks that were heard of since then are at work; those of a lost group fall silent."""


class Pending:
    """Looks whether the workers of one run find no room."""

    def __init__(self, monitor: Actor, resources: Resources, say: Callable[[str], None]) -> None:
        self.monitor, self.resources, self.say = monitor, resources, say
        self.looked = time.monotonic()
        self.since: float | None = None
        self.told = 0.0

    def check(self) -> None:
        """Tell the user if they wait; may be called often."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        beats: list[Beat] = ray.get(self.monitor.silences.remote())
        are_at_work = any(beat.age_seconds < QUIET_SECONDS for beat in beats)
        if are_at_work or not self._is_asked_for():
            self.since = None
        elif self.since is None:  # a group that finds room at once is asked for just as well
            self.since, self.told = now, 0.0
        elif now - self.told >= TELL_SECONDS:
            self.told = now
            self.say(self._describe(duration(now - self.since)))

    def _is_asked_for(self) -> bool:
        """Say whether a group like this run's is waiting for nodes.

        A group of changing size that has too little room for its least is not even asked for.
        """
        each, (least, most) = self.resources.each(), self.resources.num_workers
        states = {
            group["state"]
            for group in placement_group_table().values()
            if least <= len(group["bundles"]) <= most
            and all(bundle == each for bundle in group["bundles"].values())
        }
        return "PENDING" in states or (least < most and "CREATED" not in states)

    def _describe(self, waited: str) -> str:
        each, (least, most) = self.resources.each(), self.resources.num_workers
        workers = f"{least}" if least == most else f"{least} to {most}"
        there, free, total = ray.cluster_resources(), ray.available_resources(), cluster_total()
        shown = {
            name: amount(have.get("CPU", 0.0), have.get("GPU", 0.0))
            for name, have in (("there", there), ("free", free), ("total", total))
        }
        grown = f" of {shown['total']} at most" if shown["total"] != shown["there"] else ""
        return (
            f"waiting for machines since {waited}: {workers} worker(s) of "
            f"{amount(each['CPU'], each.get('GPU', 0.0))} each; the cluster has "
            f"{shown['there']}{grown}, free are {shown['free']}"
        )
