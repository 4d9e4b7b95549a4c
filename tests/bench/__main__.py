"""`make bench`: run the measurements that the documentation quotes, one after the other, each in its own process."""

from __future__ import annotations

import subprocess
import sys

MEASUREMENTS = (
    "bench_sampling",
    "bench_tree",
    "bench_vllm",
    "bench_train",
    "bench_packing",
    "bench_deepspeed",
    "bench_segment",
    "bench_stages",
    "bench_estimators",
    "bench_grading",
    "bench_regrade",
    "bench_scaling",
    "bench_ray",
)


def main() -> int:
    """Run the measurements named on the command line (default: all); return the exit code of the first that fails."""
    for name in sys.argv[1:] or MEASUREMENTS:
        print(f"== {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
