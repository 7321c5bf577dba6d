"""Harm real runs on purpose, and see whether they recover.

    python jobs/chaos.py --faults worker freeze driver node --seeds 5
    python jobs/chaos.py --faults worker driver --per-run 10 --pretrain="--depth 4 --num-steps 500"

On a cluster that runs it harms that one; else it starts one with three nodes on this machine.
"""

from nanoray.config import run_job
from nanoray.ops.chaos import ChaosConfig, chaos

if __name__ == "__main__":
    run_job(ChaosConfig, chaos)
