"""Train a model through all its stages, measure each, and write one page of it.

    python jobs/pipeline.py --run demo
    ray job submit --working-dir . -- python jobs/pipeline.py --depth 34
    --pretrain.data fineweb-edu --pretrain.tokens-per-param 40

The same command skips what is done and goes on with what is half done.
"""

from functools import partial

from evals.evaluate import EvaluateConfig, evaluate
from evals.exam_plan import plan_exams
from evals.sources import check_sources, lessons_of, task_of
from evals.watch import CheckpointEvaluations
from nanoray.config import run_job
from nanoray.ops.doctor_before import examine, examine_later
from nanoray.ops.pipeline import Parts, PipelineConfig, pipeline
from nanoray.stages.finetune import finetune
from nanoray.stages.pretrain import pretrain
from nanoray.stages.rl import reinforce

PARTS = Parts(
    train={
        "pretrain": lambda config: pretrain(config, CheckpointEvaluations(), examine),
        "midtrain": lambda config: finetune(
            "midtrain", config, lessons_of, CheckpointEvaluations(), examine_later
        ),
        "sft": lambda config: finetune(
            "sft", config, lessons_of, CheckpointEvaluations(), examine_later
        ),
        "rl": lambda config: reinforce(config, task_of, examine_later),
    },
    check=check_sources,
    measure=lambda asked: evaluate(EvaluateConfig(**asked)),
    check_measure=lambda asked: plan_exams(EvaluateConfig(**asked)),
)

if __name__ == "__main__":
    run_job(PipelineConfig, partial(pipeline, parts=PARTS))
