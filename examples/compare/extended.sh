#!/usr/bin/env bash
# The comparison of what came after the first tables: F and G at equal sampled tokens, H on a fixed training set, I at equal
# trained responses. Seconds are a column of every table. Finished runs are not repeated, so the command continues where it
# was stopped. Usage: examples/compare/extended.sh [OUT [JOBS]]
set -euo pipefail
here=$(dirname "$0")
out=${1:-runs/compare}
python "$here/compare.py" "$here/plan.toml" --out "$out" --jobs "${2:-2}" --tables F G H I
python "$here/report.py" "$out" --plan "$here/plan.toml" --out "$out/report"
