"""Train many small models over depth and length, to know what a large one will be like.

    python jobs/sweep.py --run sweep --depths 4,6,8 --ratios 5,10,20,40
    ray job submit --working-dir . -- python jobs/sweep.py --data fineweb-edu
    --depths 10,12,14,16 --flops 1e18,2e18
    python jobs/sweep.py --compare sweep sweep-with-an-idea

The same command goes on where an earlier start stopped; with more depths or lengths, only those are
trained.
"""

from evals.evaluate import EvaluateConfig, evaluate
from evals.exam_plan import plan_exams
from nanoray.config import run_job
from nanoray.ops.compare import compare_sweeps
from nanoray.ops.sweep import Exams, sweep
from nanoray.ops.sweep_config import SweepConfig


def run(config: SweepConfig) -> str:
    """Compare two sweeps, or run one."""
    if config.compare is not None:
        return compare_sweeps(config)
    exams = Exams(
        check=lambda asked: plan_exams(EvaluateConfig(**asked)),
        measure=lambda asked: evaluate(EvaluateConfig(**asked)),
    )
    return sweep(config, exams)


if __name__ == "__main__":
    run_job(SweepConfig, run)
