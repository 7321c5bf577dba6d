#!/usr/bin/env bash
# The whole path at a tiny size, from the texts and templates that come with nanoray: about half an
# hour on two cores. Then the chat page opens. The same command goes on where it was stopped.
#
#   bash scripts/demo.sh BIN RUN     BIN: folder of the environment's python; RUN: name of the run
set -euo pipefail

bin=$1 run=$2
# A small vocabulary, because letters are easier to learn from short tokens. Batches are small too, so
# that there are enough steps, and gradients differ more from batch to batch than the guard expects.
# Some answers are quick, as those of people are: the model learns to guess from them, until
# reinforcement learning finds that its tool pays.
chat=(--total-batch-tokens 4096 --lr-fraction 0.5 --learn assistant --skip-sigmas 0
    --validation-tokens 16384)
stage() { local name=$1; shift; for word in "$@"; do printf '%s\n' "${word/#--/--$name.}"; done; }
mapfile -t flags < <(
    stage pretrain --vocab-size 2048 --total-batch-tokens 8192 --num-steps 120 --validate-every 60
    stage midtrain "${chat[@]}" --validate-every 150 --mixture \
        identity,simplespelling=9000,spellingbee=800,quickspelling=750,arithmetic=1500,quickarithmetic=1200,facts
    stage sft "${chat[@]}" --validate-every 80 --mixture \
        "identity*2,simplespelling=5000,spellingbee=1800,quickspelling=1600,arithmetic=3500,quickarithmetic=2800,facts"
    stage rl --tasks spellingbee,arithmetic --num-steps 30 --examples-per-step 16 --num-samples 8 \
        --max-new-tokens 300 --lr-fraction 0.05 --validate-every 10 --validation-questions 64 \
        --validation-samples 4 --eager --task-size 5000 --skip-sigmas 0
)
"$bin/python" jobs/pipeline.py --run "$run" --words embedded --eval-max-per-task 64 \
    --eval-tasks spellingbee,simplespelling,arithmetic,identity "${flags[@]}"
exec "$bin/python" jobs/serve.py --run "$run" --open-page
