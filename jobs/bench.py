"""Measure how fast things are; the last line is JSON.

python jobs/bench.py train --depth 4
python jobs/bench.py stream
python jobs/bench.py tokenizer --data FOLDER
python jobs/bench.py kernels
python jobs/bench.py engine --depth 12
python jobs/bench.py core --run d34
python jobs/bench.py serve --url http://127.0.0.1:8000 --concurrency 16
"""

from typing import Annotated

import tyro

from evals.bench_core import CoreBench, bench_core
from nanoray.config import run_job
from nanoray.ops.bench import BENCHMARKS, SETTINGS

ALL = SETTINGS | Annotated[CoreBench, tyro.conf.subcommand("core")]

if __name__ == "__main__":
    run_job(ALL, lambda config: {**BENCHMARKS, CoreBench: bench_core}[type(config)](config))
