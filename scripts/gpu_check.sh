#!/usr/bin/env bash
# Everything that only a GPU can show, in under nine minutes: the tests marked gpu, then the training
# benchmark at depths 12 and 20. Needs torch with CUDA and no Ray cluster.
#
#   bash scripts/gpu_check.sh                 results in gpu_check.json
#   bash scripts/gpu_check.sh FILE            results in FILE
#
# Variables: PYTHON (by default .venv/bin/python where it exists, else python3), SECONDS_EACH (measured
# time of each benchmark, 60 by default), DATA (parquet files; by default the texts that come with nanoray).
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
default=python3
[ -x .venv/bin/python ] && default=.venv/bin/python
python=${PYTHON:-$default}
output=${1:-gpu_check.json}
[[ $output = /* ]] || output=$here/$output
seconds=${SECONDS_EACH:-60}

if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "error: $python finds no GPU. Name an interpreter whose torch does: PYTHON=... bash $0" >&2
    exit 2
fi

"$python" -m pytest -q -m gpu tests/model tests/train tests/inference   # the folders that import no Ray

parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
"$python" - "$parts/tokenizer" ${DATA:+"$DATA"} <<'END'
import json, pathlib, sys
from nanoray.ops.bench_train import TrainBench, bench_tokenizer
data = {"data": sys.argv[2]} if len(sys.argv) > 2 else {}
tokenizer = bench_tokenizer(TrainBench(vocab_size=65_536, **data))
pathlib.Path(sys.argv[1]).write_text(json.dumps(tokenizer.to_json()))
END

# Depth 12 with 64 rows is 32 GiB, depth 20 with 32 rows what the original runs with on 80 GB.
for shape in "12 64" "20 32"; do
    read -r depth rows <<<"$shape"
    "$python" jobs/bench.py train --depth "$depth" --head-dim 128 --max-seq-len 2048 \
        --tokenizer "$parts/tokenizer" --total-batch-tokens 524288 --device-batch-size "$rows" \
        --skip-seconds 30 --seconds "$seconds" ${DATA:+--data "$DATA"} \
        --output "$parts/$depth.json" >/dev/null
    echo "depth $depth: $(cat "$parts/$depth.json")"
done
"$python" - "$output" "$parts"/*.json <<'END'
import json, pathlib, sys
results = [json.loads(pathlib.Path(name).read_text()) for name in sys.argv[2:]]
pathlib.Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")
for r in results:
    print(f"depth {r['depth']:>2}  {r['tokens_per_second']:>9,.0f} tokens/s  MFU {100 * r['mfu']:.1f} %"
          f"  peak {r['peak_memory_bytes'] / 2**30:.1f} GiB  {r['device']}, torch {r['torch']}")
END
echo "wrote $output"
