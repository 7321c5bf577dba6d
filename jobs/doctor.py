"""Look at a cluster, and at the run that is meant for it, before it starts.

    python jobs/doctor.py --run d34 --depth 34 --data fineweb-edu
    python jobs/doctor.py --quick --json

The flags are those of jobs/pretrain.py. Exit code 1 says that something failed.
"""

import sys

from nanoray.config import run_job
from nanoray.ops.doctor import DoctorConfig, doctor


def report(config: DoctorConfig) -> None:
    """Print what the doctor found."""
    diagnosis = doctor(config)
    print(
        diagnosis.as_json() if config.json else diagnosis.as_text(is_terminal=sys.stdout.isatty())
    )
    sys.exit(int(diagnosis.has_failed))


if __name__ == "__main__":
    run_job(DoctorConfig, report)
