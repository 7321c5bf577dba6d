"""Measure how fast CORE is scored, against one question at a time; the last line is JSON.

python jobs/bench_core.py --run d34
"""

from evals.bench_core import CoreBench, bench_core
from nanoray.config import run_job

if __name__ == "__main__":
    run_job(CoreBench, bench_core)
