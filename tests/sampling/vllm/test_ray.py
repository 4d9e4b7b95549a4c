"""Two workers of a real Ray, each with a vLLM of its own, write what one process with vLLM writes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.chains import rows
from tests.cluster.drivers import Driver
from tests.pipeline.test_iterate import run
from tests.recipes import small_recipe, write_recipe
from tests.sampling.vllm.conftest import Vllm
from tests.sampling.vllm.test_stages import fraction_equal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray (the extra `ray`)"),
]

ENGINE = {"engine": "vllm", "enforce_eager": True, "engine_arg": ["kv_cache_memory_bytes=134217728"]}
RECIPE = small_recipe(
    run={"seed": 5},
    rollout={"num_questions": 24, "num_generations": 4, "chunk_questions": 4, **ENGINE},
    estimate={"chunk_trajectories": 16, **ENGINE},
    train={"learning_rate": 1e-4},
    eval={"num_questions": 24, **ENGINE},
    ray={"samplers": 2},
)


def test_two_workers_write_the_rows_of_one_process(vllm: Vllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    run(recipe, tmp_path / "process", vllm.policy)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    words = ("run", recipe, "--set", f"run.model={vllm.policy}", "--executor", "ray", "--out", tmp_path / "workers")
    with Driver(words) as driver:
        assert driver.wait(1800) == 0, driver.lines[-20:]
        lines = driver.lines
    busy = [re.findall(r"(\d+)%", line) for line in lines if "2 samplers busy" in line]
    assert any(all(int(share) > 0 for share in shares) for shares in busy), "both workers sample"
    workers, process = tmp_path / "workers", tmp_path / "process"
    assert fraction_equal(workers / "000/trajectories", process / "000/trajectories") > 0.9
    assert fraction_equal(workers / "start/eval", process / "start/eval") > 0.9
    difference, compared = 0.0, 0
    for mine, other in zip(*(rows(one / "000/trajectories") for one in (workers, process)), strict=True):
        assert (mine["trajectory_id"], mine["prompt_token_ids"]) == (other["trajectory_id"], other["prompt_token_ids"])
        if mine["token_ids"] == other["token_ids"]:
            difference = max(difference, float(np.abs(np.subtract(mine["logprobs"], other["logprobs"])).max()))
            compared += 1
    assert compared > 80
    assert difference < 1e-4, "only rounding differs"
    of_workers, of_process = (
        {(row["trajectory_id"], row["segment_index"]): row["rewards"] for row in rows(one / "000/advantages")}
        for one in (workers, process)
    )
    both = of_workers.keys() & of_process.keys()
    assert len(both) > 0.9 * len(of_process)
    assert np.mean([of_workers[name] == of_process[name] for name in both]) > 0.9
    # After a step of training on these rows, the two policies differ by little: the weights were loaded in place.
    assert fraction_equal(workers / "001/eval", process / "001/eval") > 0.8
