"""The metrics of a run in a store: written on this machine while it runs, copied into the store at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.tracking.metrics_log import open_run_log
from tests.shards.samples import Notes
from tests.stores.bucket import Bucket


def test_a_run_in_a_store_continues_its_report_on_another_machine(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, identities = bucket.path("runs/one"), list[str]()
    for machine, count in (("first", 2), ("second", 4)):
        monkeypatch.setenv("SPO_CACHE", str(tmp_path / machine))
        with open_run_log(run, ("tensorboard",), {}, Notes()) as report:
            assert report
            steps = [{"step": i, "loss": float(i)} for i in range(1, count + 1)]
            report.open_series("train", run / "000" / "checkpoint", "work", steps)
        identities.append(json.loads(bucket.objects()["runs/one/_logs/mirrors.json"])["identity"])
        assert list((tmp_path / machine / "logs").glob("*/tensorboard/*tfevents*"))
    entries = [json.loads(line) for line in bucket.objects()["runs/one/_logs/metrics.jsonl"].splitlines()]
    assert [(entry["of"], entry["step"]) for entry in entries] == [("000/checkpoint", i) for i in range(1, 5)]
    assert identities[0] == identities[1]
