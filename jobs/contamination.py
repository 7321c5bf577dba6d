"""Find the questions of a benchmark that stand in the text a model is trained on.

python jobs/contamination.py --data climbmix --tasks core,gsm8k
"""

from evals.contamination import ContaminationConfig, find_contamination
from nanoray.config import run_job

if __name__ == "__main__":
    run_job(ContaminationConfig, find_contamination)
