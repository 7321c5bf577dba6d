#!/usr/bin/env bash
# Make sure that what pip cannot install is there: a C++ compiler, which torch.compile needs on CPUs,
# and Python's venv module. On Debian and Ubuntu missing packages are installed; elsewhere they are named.
set -euo pipefail
python=${1:-python3}

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    echo "error: $python is $("$python" --version 2>&1), and nanoray needs Python 3.11, 3.12 or 3.13." \
        "Name one: make PYTHON=python3.12" >&2
    exit 2
fi

missing=()
command -v g++ >/dev/null || command -v clang++ >/dev/null || missing+=(g++)
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} -eq 0 ] && exit 0

if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
    exit 0
fi
case " ${missing[*]} " in
*" python3-venv "*)
    echo "error: please install ${missing[*]}, and run this again." >&2
    exit 2
    ;;
esac
echo "note: without ${missing[*]} nothing is compiled, and training on a CPU is slower." >&2
