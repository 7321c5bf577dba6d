"""`jobs/rl.py`, with a task that a tiny model is sometimes right about.

To be run with the repository in PYTHONPATH.
"""

from nanoray.config import run_job
from nanoray.stages.rl import reinforce
from nanoray.stages.rl_config import RLConfig
from tests.rl.test_steps import SayE

if __name__ == "__main__":
    run_job(RLConfig, lambda config: reinforce(config, lambda *_: SayE()))
