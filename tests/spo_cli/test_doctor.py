"""`spo doctor` reports the environment and does not fail when something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spo_cli import doctor
from spo_cli.app import main
from stages.models.presets import make_byte_tokenizer, make_model
from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.embedded.plans import directory_plan
from stages.sampling.embedded.probe import cpu_threads
from tests.sampling.sampling_models import make


def examine(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code and the report of `spo doctor --json`."""
    with pytest.raises(SystemExit) as exited:
        main(["doctor", "--json", *arguments])
    return int(exited.value.code or 0), json.loads(capsys.readouterr().out)


def test_the_report_names_versions_hardware_and_the_plan_of_the_quickstart(capsys: pytest.CaptureFixture[str]):
    code, sections = examine(capsys)
    assert code == 0
    assert sections["Packages"]["torch"] == torch.__version__
    assert sections["Threads"]["torch"] == torch.get_num_threads()
    assert sections["CPU"]["torch capability"] == torch.backends.cpu.get_cpu_capability()
    sampling = sections["Sampling with the preset tiny"]
    plan = TransformersSampler(*make_model("tiny", 0)).plan
    assert sampling["threads"] == plan.threads
    assert ("bitwise" in sampling["samples on a CPU in float32"]) == plan.bitwise
    assert sum(name.startswith("linear") for name in sampling) == (len(plan.linears) if plan.bitwise else 0)


def test_a_table_has_a_line_for_each_value(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_plan", lambda model: {"samples": "unknown"})
    with pytest.raises(SystemExit) as exited:
        main(["doctor"])
    out = capsys.readouterr().out
    assert not exited.value.code
    lines = [line.split() for line in out.splitlines()]
    assert ["torch", torch.__version__] in lines
    assert ["samples", "unknown"] in lines


@pytest.mark.parametrize("kind", ["qwen2", "phi3"])
def test_the_plan_of_a_directory_equals_the_plan_of_its_sampler(kind: Any, tmp_path: Path):
    model = make(kind)
    model.save_pretrained(tmp_path)
    make_byte_tokenizer().save_pretrained(tmp_path)
    with cpu_threads(1):
        plan = directory_plan(str(tmp_path))
        assert plan == TransformersSampler(model, make_byte_tokenizer()).forward.plan


def test_missing_packages_and_programs_are_reported_without_failing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(doctor, "import_or_none", lambda name: None)
    monkeypatch.setattr(doctor.metadata, "version", _absent)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    code, sections = examine(capsys, "--model", "anything")
    assert code == 0
    assert set(sections["Packages"].values()) == {doctor.NOT_INSTALLED}
    assert sections["SLURM"] == {"sinfo": doctor.NOT_INSTALLED}
    assert sections["Sampling with anything"] == {"samples": "unknown: torch or transformers is not installed"}


def _absent(name: str) -> str:
    raise doctor.metadata.PackageNotFoundError(name)


def test_an_unreadable_model_is_reported_without_failing(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    code, sections = examine(capsys, "--model", str(tmp_path))
    assert code == 0
    assert sections[f"Sampling with {tmp_path}"]["samples"].startswith("unknown: ")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo slurm 24.05.1", "slurm 24.05.1"),
        ("exit 3", "installed, but fails: exit code 3"),
        ("echo no cluster >&2; exit 1", "installed, but fails: no cluster"),
        ("true", "installed, prints nothing"),
    ],
)
def test_a_program_that_fails_is_reported_with_its_message(
    script: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(f"#!/bin/sh\n{script}\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert examine(capsys)[1]["SLURM"]["sinfo"] == expected
