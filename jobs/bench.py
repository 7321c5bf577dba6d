"""Measure how fast things are; the last line is JSON.

python jobs/bench.py train --depth 4
python jobs/bench.py stream
python jobs/bench.py tokenizer --data FOLDER
python jobs/bench.py kernels
python jobs/bench.py engine --depth 12
python jobs/bench.py serve --url http://127.0.0.1:8000 --concurrency 16
"""

from nanoray.config import run_job
from nanoray.ops.bench import SETTINGS, bench

if __name__ == "__main__":
    run_job(SETTINGS, bench)
