"""`jobs/rl.py`, with a task that a tiny model is sometimes right about."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from nanoray.config import run_job  # noqa: E402 (the repository comes first)
from nanoray.stages.rl import reinforce  # noqa: E402
from nanoray.stages.rl_config import RLConfig  # noqa: E402
from tests.rl.test_steps import SayE  # noqa: E402

if __name__ == "__main__":
    run_job(RLConfig, lambda config: reinforce(config, lambda *_: SayE()))
