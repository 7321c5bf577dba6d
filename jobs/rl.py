"""Reinforcement learning on questions that can be graded, such as those of GSM8K.

    python jobs/rl.py --run demo --tasks spellingbee
    ray job submit --working-dir . -- python jobs/rl.py --run d34

The same command goes on where an earlier start of the stage stopped.
"""

from evals.sources import task_of
from nanoray.config import run_job
from nanoray.ops.doctor_before import examine_later
from nanoray.stages.rl import reinforce
from nanoray.stages.rl_config import RLConfig

if __name__ == "__main__":
    run_job(RLConfig, lambda config: reinforce(config, task_of, examine_later))
