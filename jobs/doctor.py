"""Look at a cluster, and at the run that is meant for it, before it starts.

    python jobs/doctor.py --run d34 --depth 34 --data fineweb-edu --tokens-per-param 40
    python jobs/doctor.py --quick --json

The flags are those of jobs/pretrain.py. Exit code 1 says that something failed.
"""

import sys

from nanoray.config import run_job
from nanoray.ops.doctor import DoctorConfig, doctor


def report(config: DoctorConfig) -> None:
    """Print what the doctor found."""
    try:
        diagnosis = doctor(config)
    except KeyboardInterrupt:
        print("Interrupted. Nothing was changed.", file=sys.stderr)
        sys.exit(130)
    is_terminal = sys.stdout.isatty()
    print(diagnosis.as_json() if config.json else diagnosis.as_text(is_terminal=is_terminal))
    sys.exit(int(diagnosis.has_failed))


if __name__ == "__main__":
    run_job(DoctorConfig, report)
