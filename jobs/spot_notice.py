"""Wait for the notice that this spot machine is taken back, and let Ray drain its node.

    python jobs/spot_notice.py --cloud aws

The launcher's files start it on every spot worker; it ends with the machine's Ray node.
"""

from nanoray.config import run_job
from nanoray.ops.spot_notice import SpotNoticeConfig, watch_for_notice

if __name__ == "__main__":
    run_job(SpotNoticeConfig, watch_for_notice)
