"""Serve a run: an OpenAI API and a chat page behind one port.

python jobs/serve.py --run d34
NANORAY_API_KEYS=secret python jobs/serve.py --run d34/sft@700 --host 0.0.0.0
"""

from nanoray.config import run_job
from nanoray.ops.launch import launch
from nanoray.serve.serve_config import ServeConfig

if __name__ == "__main__":
    run_job(ServeConfig, launch)
