"""Rate, time left, reward and last warning of unfinished work, from its log, its chunks and its metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.slurm.activity import Activity, of_model, of_part

LOG = """\
2026-01-01T00:00:00+00:00 started: spo rollout (host a, process 1), fingerprint f
2026-01-01T00:00:50+00:00 chunk 1 of 5: 4 rows, sampled 1000, prefilled 10
2026-01-02T00:00:00+00:00 started: spo rollout (host a, process 2), fingerprint f
2026-01-02T00:00:00+00:00 part-00000-of-00001.parquet: resuming, 1 of 5 chunks committed
2026-01-02T00:00:20+00:00 chunk 2 of 5: 4 rows, sampled 500, prefilled 10
2026-01-02T00:00:30+00:00 a chunk had no answer
2026-01-02T00:00:40+00:00 chunk 3 of 5: 4 rows, sampled 700, prefilled 10
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_pace_is_the_one_of_the_last_call(tmp_path: Path):
    """500 + 700 tokens in 40 s; two of five chunks are left at 20 s each, and 5 s have passed."""
    begun = tmp_path / ".part-00000-of-00001"
    begun.mkdir()
    pq.write_table(pa.table({"reward": [1.0, 0.0, None]}), begun / "chunk-00000.parquet")
    pq.write_table(pa.table({"reward": [1.0]}), begun / "chunk-00001.parquet")
    (begun / "chunk-00002.parquet").write_bytes(b"torn")
    found = of_part(write(tmp_path / "log", LOG), begun, datetime(2026, 1, 2, 0, 0, 45, tzinfo=UTC))
    assert found == Activity(30.0, 35.0, 2 / 3, "a chunk had no answer")


def test_without_a_chunk_there_is_no_pace(tmp_path: Path):
    log = write(tmp_path / "log", LOG.splitlines()[0] + "\n")
    assert of_part(log, tmp_path / "none", datetime.now(UTC)) == Activity()
    assert of_part(tmp_path / "absent", tmp_path / "none", datetime.now(UTC)) == Activity()


def test_a_model_reports_its_last_step(tmp_path: Path):
    metrics = write(tmp_path / "metrics.jsonl", '{"reward": 0.2}\n{"reward": 0.4, "tokens_per_second": 90.5}\n')
    assert of_model(metrics) == Activity(90.5, None, 0.4)
    assert of_model(write(tmp_path / "torn.jsonl", '{"rew')) == Activity()
