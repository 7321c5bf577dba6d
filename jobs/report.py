"""Say what a run has done and where its time went, and write its report.html anew.

python jobs/report.py d34 --storage s3://bucket/runs
python jobs/report.py d34 --json
python jobs/report.py d34 --watch
python jobs/report.py d34 --card
"""

from nanoray.config import run_job
from nanoray.ops.report import ReportConfig, report

if __name__ == "__main__":
    run_job(ReportConfig, report)
