#!/usr/bin/env bash
#SBATCH --job-name=nanoray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nanoray-%j.log
#
# A Ray cluster on the nodes of one Slurm job, and one job of nanoray on it:
#
#   sbatch --nodes=4 deploy/slurm.sh python jobs/pretrain.py --run d34 --depth 34 --data fineweb-edu --tokens-per-param 40
#
# Submit it from the checkout, which lies on a filesystem that all nodes see, with .venv made by `make setup`. The same
# command goes on where an earlier one stopped: at its time limit, by a lost node, or by scancel.
#
# The first node is the head and works too: Slurm ends all nodes together, so a head apart would be safer from nothing.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch [--nodes=N] deploy/slurm.sh COMMAND..." >&2; exit 2; }

# shellcheck source=/dev/null
source "${VENV:-.venv}/bin/activate"
ulimit -n 65536 || ulimit -n "$(ulimit -Hn)"
export RAY_AUTH_MODE=token PYTHONPATH=$PWD
# What Ray leaves in /tmp/ray belongs to whoever had the node before.
export RAY_TMPDIR=${RAY_TMPDIR:-/tmp/ray-$UID}

# The token is a file in the home folder, which all nodes see; in the environment or in arguments others could read it.
(umask 077 && ray get-auth-token --generate >/dev/null)
chmod 600 ~/.ray/auth_token

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" bash -c 'hostname --ip-address; hostname -I' |
    tr ' ' '\n' | grep -E '^[0-9.]+$' | grep -m1 -v '^127[.]') ||
    { echo "error: $head has no address that other nodes reach" >&2; exit 1; }
# Two jobs of one user may share a node's address one after the other; each has ports of its own.
port=$((20000 + SLURM_JOB_ID % 10000))
dashboard_port=$((30000 + SLURM_JOB_ID % 10000))
resources=(--num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)
[ -z "${SLURM_CPUS_ON_NODE:-}" ] || resources+=(--num-cpus="$SLURM_CPUS_ON_NODE")

steps=()
end_steps() { [ ${#steps[@]} -eq 0 ] || kill "${steps[@]}" 2>/dev/null || true; wait; }
trap end_steps EXIT

# How soon a node is given up: docs/runbook.md.
RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000 \
    RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3 \
    srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$head_ip" --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" "${resources[@]}" &
steps+=($!)

# This script runs on the first node, and so reaches the head's dashboard, which listens on that node only. Until it
# answers, workers would give up, and ray.init would try for a minute.
export RAY_ADDRESS=http://127.0.0.1:$dashboard_port
head_answers=
for _ in $(seq 90); do
    kill -0 "${steps[0]}" 2>/dev/null || break
    if ray job list >/dev/null 2>&1; then head_answers=yes; break; fi
    sleep 1
done
[ -n "$head_answers" ] || { echo "error: Ray's head did not start on $head" >&2; exit 1; }

if [ ${#nodes[@]} -gt 1 ]; then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --ntasks-per-node=1 --exclude="$head" \
        ray start --address="$head_ip:$port" "${resources[@]}" &
    steps+=($!)
    count_nodes='import ray; ray.init(address="'$head_ip:$port'", log_to_driver=False, logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))'
    for _ in $(seq 150); do
        for step in "${steps[@]}"; do
            kill -0 "$step" 2>/dev/null || { echo "error: Ray ended on a node" >&2; exit 1; }
        done
        count=$(RAY_ADDRESS='' python -c "$count_nodes" 2>/dev/null || echo 0)
        [ "$count" = ${#nodes[@]} ] && break
        sleep 2
    done
    [ "$count" = ${#nodes[@]} ] || { echo "error: only $count of ${#nodes[@]} nodes came" >&2; exit 1; }
fi

ray job submit -- "$@"
