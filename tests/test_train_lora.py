"""Test `spo train --lora-r` on real artefacts: adapters that are continued, resumed, merged and sampled from."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spo_cli import show
from stages import sft
from stages.core.errors import FingerprintMismatch, UserError
from stages.models import adapters, checkpoints, loading
from stages.pipeline import iterate
from stages.shards.lineage import read_lineage
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES
from stages.train import Config, run
from tests.chains import ARITHMETIC, cut, sample, value
from tests.recipes import small_recipe
from tests.shards.samples import Notes
from tests.test_train import Stop, attempt, metrics

RECIPE = small_recipe(
    sft={"preset": "tiny", "steps": 3},
    train={
        "learning_rate": 1e-2,
        "lora_r": 4,
        "lora_target_modules": ["q_proj", "v_proj"],
        "mask": "all",
        "merge": True,
    },
)


@pytest.fixture(scope="module")
def adapted(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the adapter of a first iteration, on the policy that sampled the chain."""
    out = tmp_path_factory.mktemp("adapted") / "adapter"
    run(settings(chain, out))
    return out


def settings(chain: Path, out: Path, **changes: Any) -> Config:
    given: dict[str, Any] = {
        "advantages": (chain / "advantages",),
        "out": out,
        "lora_r": 4,
        "learning_rate": 1e-2,
        "per_device_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "beta": 0.01,
        "device": "cpu",
        "threads": 1,
    }
    return Config(**given | changes)


def assert_same_adapter(one: Path, other: Path) -> None:
    for name in (adapters.WEIGHTS[0], adapters.CONFIG_FILE, "optimizer.state", "spo.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def next_chain(here: Path, model: Path) -> Path:
    """Make the artefacts of a second iteration, sampled from the directory of an adapter."""
    sample(here / "trajectories", model, num_questions=4, temperature=0.8)
    cut(here / "cutpoints", here / "trajectories", interval=2)
    value(here / "advantages", here / "cutpoints")
    return here


def test_the_output_is_an_adapter_whose_base_is_the_policy(chain: Path, policy: Path, adapted: Path):
    assert {path.name for path in adapted.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "spo.json"}
    assert not [*adapted.glob("model*"), *adapted.glob("merged")]
    settings = json.loads((adapted / "adapter_config.json").read_text())
    assert not Path(settings["base_model_name_or_path"]).is_absolute()
    assert (adapted / settings["base_model_name_or_path"]).resolve() == policy.resolve()
    assert "library_name: peft" in (adapted / "README.md").read_text()
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8.0, 0.0)
    lineage = read_lineage(adapted)
    assert lineage is not None
    assert lineage.config["lora_target_modules"] == [
        f"{name}_proj" for name in ("down", "gate", "k", "o", "q", "up", "v")
    ]
    assert metrics(adapted)[0]["ratio/mean"] == 1.0
    assert metrics(adapted)[-1]["kl"] > 0


def test_a_run_killed_at_random_moments_ends_with_the_same_adapter(chain: Path, tmp_path: Path):
    given = {"epochs": 2, "save_steps": 1}
    (tmp_path / "whole").mkdir()
    run(settings(chain, tmp_path / "whole" / "policy", **given))
    config = settings(chain, tmp_path / "torn" / "policy", **given)
    assert not attempt(config, stop=Stop(17, signal.SIGKILL))
    assert list((tmp_path / "torn" / ".policy.partial").glob("step-*/adapter_model.safetensors"))
    generator = random.Random(0)
    for _ in range(3):
        if attempt(config, seconds=generator.uniform(0.05, 0.8)):
            break
    run(config)
    assert_same_adapter(tmp_path / "whole" / "policy", tmp_path / "torn" / "policy")


def test_the_next_iteration_samples_from_the_adapter_and_continues_it(
    policy: Path, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = next_chain(tmp_path, adapted)
    sampled = open_artefact(here / "trajectories", TRAJECTORIES).lineage
    assert sampled is not None
    assert sampled.model is not None
    assert sampled.model.fingerprint == checkpoints.digest(adapted)
    loads = count_loads(monkeypatch)
    run(settings(here, tmp_path / "next", reference_model=str(policy), epochs=2))
    assert loads == [policy]  # the reference is the base of the adapter, which is loaded once
    steps = load_file(tmp_path / "next" / "optimizer.state")
    before = load_file(adapted / "optimizer.state")
    names = [name for name in steps if name.startswith("step.")]
    taken = len(metrics(tmp_path / "next"))
    assert all(steps[name] == before[name] + taken for name in names)
    lineage = read_lineage(tmp_path / "next")
    assert lineage is not None
    assert [item.stage for item in lineage.inputs] == ["estimate", "rollout", "reference", "optimizer"]
    assert metrics(tmp_path / "next")[0]["kl"] > 0  # the policy differs from its base


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that records the directories whose weights are loaded from now on."""
    loaded, load = list[Path](), loading.load_model

    def counted(directory: Path, *rest: Any) -> Any:
        loaded.append(directory)
        return load(directory, *rest)

    monkeypatch.setattr(loading, "load_model", counted)
    return loaded


def test_under_replay_the_base_and_older_adapters_are_denominators_of_ratios(
    chain: Path, adapted: Path, tmp_path: Path
):
    here = next_chain(tmp_path, adapted)
    both = (chain / "advantages", here / "advantages")
    run(settings(here, tmp_path / "next", advantages=both, replay=2, max_per_question=1))
    assert metrics(tmp_path / "next")[0]["ratio/mean"] != 1.0
    run(settings(here, tmp_path / "after", advantages=both, replay=2, max_per_question=1, model=str(tmp_path / "next")))


def test_merge_writes_the_merged_model_at_once_or_in_a_later_call(chain: Path, policy: Path, adapted: Path):
    assert run(settings(chain, adapted, merge=True)).up_to_date
    whole, merged = checkpoints.resolve(str(adapted / "merged")), load_file(adapted / "merged" / "model.safetensors")
    base, cpu = load_file(policy / "model.safetensors"), torch.device("cpu")
    assert {name for name in base if not torch.equal(merged[name], base[name])} == {
        n for n in base if "proj.weight" in n
    }
    ours = loading.load_model(adapted, cpu, torch.float32).state_dict()
    theirs = loading.load_model(whole, cpu, torch.float32).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    lineage = read_lineage(adapted / "merged")
    assert lineage is not None
    assert lineage.model is not None
    assert (adapted / "merged" / lineage.model.path).resolve() == policy


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lora_r": None, "merge": True}, "pass --lora-r"),
        ({"lora_target_modules": ("query",)}, "--lora-target-modules query"),
    ],
)
def test_invalid_options_are_refused_before_any_work(chain: Path, tmp_path: Path, change: dict[str, Any], problem: str):
    with pytest.raises(UserError, match=problem):
        run(settings(chain, tmp_path / "out", **change))
    assert not any(tmp_path.iterdir())


def test_another_rank_is_another_configuration(chain: Path, adapted: Path):
    with pytest.raises(FingerprintMismatch, match="lora_r: found 4, requested 8"):
        run(settings(chain, adapted, lora_r=8))


def test_sft_can_train_and_continue_an_adapter(policy: Path, tmp_path: Path):
    given: dict[str, Any] = {**ARITHMETIC, "steps": 2, "threads": 1, "device": "cpu"}
    sft.run(sft.Config(out=tmp_path / "warm", model=str(policy), lora_r=2, merge=True, **given))
    assert adapters.read_lora(tmp_path / "warm").r == 2
    assert (tmp_path / "warm" / "merged" / "model.safetensors").is_file()
    sft.run(sft.Config(out=tmp_path / "on", model=str(tmp_path / "warm"), **given))
    assert adapters.read_lora(tmp_path / "on").r == 2
    with pytest.raises(UserError, match="pass --model"):
        sft.run(sft.Config(out=tmp_path / "none", preset="tiny", lora_r=2, **given))


def test_a_run_trains_one_adapter_over_all_iterations(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    iterate.run(iterate.Config(recipe=recipe, out=tmp_path / "run"), Notes())
    base = tmp_path / "run" / "start" / "checkpoint"
    for number in ("000", "001"):
        policy = tmp_path / "run" / number / "checkpoint"
        assert adapters.read_lora(policy) == adapters.Lora(4, 8.0, ("q_proj", "v_proj"))
        assert checkpoints.base_of(policy) == base
        assert (policy / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "001" / "eval").is_dir()
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "001" / "checkpoint"
    assert checkpoints.base_of(checkpoints.resolve(str(moved))).resolve() == tmp_path / "moved" / "start" / "checkpoint"


def test_show_describes_an_adapter(policy: Path, adapted: Path, capsys: pytest.CaptureFixture[str]):
    show.run(show.Config(path=adapted, json=True))
    shown = json.loads(capsys.readouterr().out)
    assert shown["fingerprint"] == checkpoints.digest(adapted)
    figures = shown["statistics"]
    assert (figures["adapter_of"], figures["rank"], figures["alpha"]) == (str(policy), 4, 8.0)
    assert figures["steps"] == len(metrics(adapted))


def test_ranks_of_deepspeed_train_the_same_adapter(chain: Path, policy: Path, tmp_path: Path):
    """Two ranks at ZeRO stage 3 each hold a fraction of base and adapter; then the torch engine continues."""
    given: dict[str, Any] = {"adam_epsilon": 1e-4, "epochs": 2}
    run(settings(chain, tmp_path / "torch", **given))
    flags = ["--lora-r=4", "--learning-rate=1e-2", "--per-device-batch-size=4", "--gradient-accumulation-steps=2"]
    flags += ["--beta=0.01", "--device=cpu", "--threads=1", "--adam-epsilon=1e-4", "--epochs=2", "--merge"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    launch += ["--nproc-per-node=2", "-m", "spo_cli"]
    arguments = ["train", str(chain / "advantages"), "--out", str(tmp_path / "ranks")]
    done = subprocess.run(
        [*launch, *arguments, *flags, "--engine=deepspeed", "--zero-stage=3"],
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, other = (load_file(tmp_path / name / adapters.WEIGHTS[0]) for name in ("torch", "ranks"))
    assert max(float((value - other[name]).abs().max()) for name, value in one.items()) < 1e-5
    assert (tmp_path / "ranks" / "merged" / "model.safetensors").is_file()
    assert metrics(tmp_path / "ranks")[-1]["mismatch/tokens"] == metrics(tmp_path / "torch")[-1]["mismatch/tokens"]
    here = next_chain(tmp_path, tmp_path / "ranks")
    run(settings(here, tmp_path / "next", reference_model=str(policy)))
    assert metrics(tmp_path / "next")[0]["kl"] > 0
