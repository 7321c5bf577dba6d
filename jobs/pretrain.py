"""Pretrain a base model.

    python jobs/pretrain.py --run demo
    ray job submit --working-dir . -- python jobs/pretrain.py --run d34 --depth 34
    --data fineweb-edu --tokens-per-param 40

The same command goes on where an earlier start of the run stopped.
"""

from evals.watch import CheckpointEvaluations
from nanoray.config import run_job
from nanoray.ops.doctor_before import examine
from nanoray.stages.pretrain import pretrain
from nanoray.stages.pretrain_config import PretrainConfig

if __name__ == "__main__":
    run_job(PretrainConfig, lambda config: pretrain(config, CheckpointEvaluations(), examine))
