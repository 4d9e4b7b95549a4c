#!/usr/bin/env bash
# Every method on the built-in task, from one warm start; the last table sets them side by side.
# Usage: examples/methods/run.sh [METHOD ...]
set -euo pipefail
here=$(dirname "$0")
methods=("$@")
if [ ${#methods[@]} -eq 0 ]; then
    methods=(spo-chain spo-chain-kept spo-tree branch-at tree-budget grpo grpo-dynamic grpo-mask rloo dr-grpo vineppo
             naive-k ppo prefix-tree adaptive forward tempo treerpo treerl treepo treeadv tree-grpo grpo-entropy grpo-random gspo
             segment-ratio cispo dppo sapo clip-cov kl-cov restem dpo-positive)
fi

spo sft --preset tiny --task arithmetic --steps 1500 --threads 1 --out runs/methods/start
for method in "${methods[@]}"; do
    spo run "$here/$method.toml"
done
