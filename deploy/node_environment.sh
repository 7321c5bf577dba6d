# shellcheck shell=bash
# What every process of a node needs, for `source`. Ray hands it on to drivers and workers.
ulimit -n 65536
export PATH="$HOME/venv/bin:$PATH"
# An uploaded working folder comes before this, so that a changed checkout is what runs.
export PYTHONPATH="$HOME/nanoray"
# The words, benchmarks and tokenizers that one node has fetched are there for all.
export XDG_CACHE_HOME=/shared/cache
