#!/usr/bin/env bash
# The same iterations as recipe.toml, with one command per stage: what `spo run` does, spelled out.
# Usage: examples/quickstart/chain.sh [OUT] [ITERATIONS]. Run it again after a crash: it goes on where it was.
set -euo pipefail
out=${1:-runs/quickstart-chain} iterations=${2:-16}

task=(--task arithmetic --threads 1)
policy=$out/start/checkpoint
spo sft "${task[@]}" --preset tiny --steps 1500 --out "$policy"
spo eval "${task[@]}" --model "$policy" --num-questions 1000 --max-tokens 64 --out "$out/start/eval"

for ((i = 0; i < iterations; i++)); do
  here=$out/$(printf %03d "$i")
  spo rollout "${task[@]}" --model "$policy" --num-questions 64 --skip-questions $((64 * i)) --num-generations 2 \
    --max-tokens 64 --seed "$i" --out "$here/trajectories"
  spo segment "$here/trajectories" --interval 4 --out "$here/cutpoints"
  spo estimate "$here/cutpoints" --rollouts 4 --threads 1 --seed "$i" --out "$here/advantages"
  spo train "$here/advantages" --learning-rate 1e-4 --epochs 4 --threads 1 --seed "$i" \
    --per-device-batch-size 32 --gradient-accumulation-steps 1 \
    --reference-model "$out/start/checkpoint" --out "$here/checkpoint"
  policy=$here/checkpoint
done
spo eval "${task[@]}" --model "$policy" --num-questions 1000 --max-tokens 64 --out "$(dirname "$policy")/eval"
