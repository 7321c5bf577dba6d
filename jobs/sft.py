"""Fine-tune on conversations: teach the model to answer as an assistant.

    python jobs/sft.py --run demo
    ray job submit --working-dir . -- python jobs/sft.py --run d34

The same command goes on where an earlier start of the stage stopped.
"""

from evals.sources import lessons_of
from evals.watch import CheckpointEvaluations
from nanoray.config import run_job
from nanoray.ops.doctor_before import examine_later
from nanoray.stages.finetune import finetune
from nanoray.stages.finetune_config import FinetuneConfig

if __name__ == "__main__":
    run_job(
        FinetuneConfig,
        lambda config: finetune("sft", config, lessons_of, CheckpointEvaluations(), examine_later),
    )
