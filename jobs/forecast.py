"""Forecast a run from a sweep of small ones, and grade the forecast after the run.

python jobs/forecast.py my-sweep --depth 34 --ratio 40 --gpu h100
python jobs/forecast.py my-sweep --depth 34 --ratio 40 --budget-dollars 2500
python jobs/forecast.py --grade d34
"""

from nanoray.config import run_job
from nanoray.ops.forecast import ForecastConfig, forecast

if __name__ == "__main__":
    run_job(ForecastConfig, forecast)
