#!/usr/bin/env bash
# One iteration over real questions, a command per stage, on a CPU. Usage: examples/gsm8k/chain.sh DATA [OUT]
# DATA is a Parquet or JSONL file with the columns question and answer, or a directory with train.* in it.
set -euo pipefail
data=${1:?usage: chain.sh DATA [OUT]} out=${2:-runs/gsm8k-chain}

spo sft --task gsm8k --data "$data" --preset tiny --steps 50 --threads 1 --out "$out/start"
spo rollout --model "$out/start" --task gsm8k --data "$data" --num-questions 64 --num-generations 2 --max-tokens 96 \
  --threads 1 --out "$out/trajectories"
spo segment "$out/trajectories" --interval 20 --out "$out/cutpoints"
spo estimate "$out/cutpoints" --rollouts 2 --threads 1 --out "$out/advantages"
spo train "$out/advantages" --learning-rate 1e-5 --threads 1 --out "$out/checkpoint"
spo eval --model "$out/checkpoint" --task gsm8k --data "$data" --split train --num-questions 32 --max-tokens 96 \
  --threads 1 --out "$out/eval"
