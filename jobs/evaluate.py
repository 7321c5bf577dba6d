"""Measure a checkpoint, or a Hugging Face model, and compare two of them.

python jobs/evaluate.py --run d34 --tasks core,chat
python jobs/evaluate.py --compare d34/sft d34/rl --tasks chat
"""

from evals.evaluate import EvaluateConfig, evaluate
from nanoray.config import run_job

if __name__ == "__main__":
    run_job(EvaluateConfig, evaluate)
