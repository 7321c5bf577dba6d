"""Say what a run will take, before any GPU is touched.

python jobs/plan.py --depth 34 --tokens-per-param 40 --device-batch-size 4 --num-workers 8
"""

from nanoray.config import run_job
from nanoray.ops.plan import PlanConfig, plan

if __name__ == "__main__":
    run_job(PlanConfig, plan)
