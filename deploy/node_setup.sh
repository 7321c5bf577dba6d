#!/usr/bin/env bash
# Prepare a node of cluster.yaml or deploy/gcp.yaml: the token's mode, the shared storage, the software.
#
#   bash deploy/node_setup.sh HOST:/EXPORT
#
# The software lies on the storage and is installed by whichever node comes first. So all nodes have the same, and a
# spot node joins without fetching gigabytes, which it would do at the price of eight GPUs.
set -euo pipefail
address=${1:?which NFS export holds the runs, as HOST:/EXPORT}
project=$(cd "$(dirname "$0")/.." && pwd)
shared=/shared

# rsync keeps the mode of your machine's file, and `ray get-auth-token --generate` leaves it readable for everyone.
chmod 600 ~/.ray/auth_token

# g++ and the headers of Python: torch compiles kernels, and what launches them, on the node.
packages=(nfs-common python3.12-venv python3.12-dev g++)
if ! dpkg --status "${packages[@]}" >/dev/null 2>&1; then
    # A fresh image may still be updating itself. DPkg::Lock::Timeout is for the packages: the lists, which `update`
    # locks, have no such option.
    deadline=$((SECONDS + 600))
    until sudo apt-get update -qq; do
        if ((SECONDS > deadline)); then
            echo "apt-get update has not succeeded for ten minutes" >&2
            exit 1
        fi
        sleep 5
    done
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq "${packages[@]}"
fi

if ! mountpoint --quiet "$shared"; then
    sudo mkdir -p "$shared"
    # hard: a storage that is away for a while stops writers instead of failing them.
    sudo mount -t nfs -o hard,timeo=600,retrans=2,noresvport,rsize=1048576,wsize=1048576 "$address" "$shared"
fi
sudo install -d -o "$(id -u)" -g "$(id -g)" "$shared/runs" "$shared/cache" "$shared/software"
# A bare `python jobs/pretrain.py` writes to ./runs, and all nodes must see it.
ln -sfn "$shared/runs" "$project/runs"

lock=$project/deploy/requirements.lock
software=$shared/software/$(sha256sum "$lock" | cut -c1-16)
(
    flock 9
    if [ ! -e "$software/.ready" ]; then
        rm -rf "$software"
        python3.12 -m venv "$software"
        "$software/bin/pip" install --quiet --no-cache-dir --require-hashes -r "$lock"
        touch "$software/.ready"
    fi
) 9>"$shared/software/.lock"
ln -sfn "$software" ~/venv

# `ray exec`, `ray attach` and the launcher's own commands begin with ~/.bashrc.
line="source $project/deploy/node_environment.sh; export RAY_AUTH_MODE=token"
grep -qxF "$line" ~/.bashrc || echo "$line" >>~/.bashrc
