"""Fetch a public dataset ahead of the run that reads it; needs no cluster.

    python jobs/data.py --data climbmix --depth 34 --tokens-per-param 40
    python jobs/data.py --data fineweb-edu --num-shards 8 --dry-run

A run with the same --data and --storage finds the shards there. The same command goes on where an
earlier one stopped.
"""

from nanoray.config import run_job
from nanoray.ops.fetch import FetchConfig, fetch

if __name__ == "__main__":
    run_job(FetchConfig, fetch)
