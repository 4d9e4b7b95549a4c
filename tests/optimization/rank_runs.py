"""Run `spo train` on the ranks of a launcher, and compare the results."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stages import train
from stages.models.checkpoints import METRICS_FILE

ROOT = Path(__file__).resolve().parents[2]
CURVE = ("loss", "kl", "grad_norm", "ratio/mean", "entropy", "approx_kl", "reward", "advantages/std", "num_tokens")


@dataclass(frozen=True)
class TrainingFolder:
    """A folder with `chain/` and two models; each training call writes a directory into it."""

    folder: Path

    def options(self, name: str, **changes: Any) -> dict[str, Any]:
        """Return the options of the call that writes `name`, with changes."""
        given: dict[str, Any] = {
            "advantages": [str(self.folder / "chain" / "advantages")],
            "out": str(self.folder / name),
            "reference_model": str(self.folder / "reference"),
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "adam_epsilon": 1e-4,  # with a smaller one, the rounding of a near-zero gradient decides its step
            "beta": 0.05,
            "epochs": 2,
            "per_device_batch_size": 1,  # each of two ranks has two passes; in the last step one rank has one
            "gradient_accumulation_steps": 4,
        }
        return given | changes

    def job(self, name: str, *, failure: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        """Return a call for `rank_jobs`, and the failure that it provokes, if any."""
        return {"name": name, "options": self.options(name, **changes), **(failure or {})}

    @property
    def adapter(self) -> dict[str, Any]:
        """Options of an adapter whose base is the reference, which is scored with the adapter disabled."""
        return {"lora_r": 4, "reference_model": str(self.folder / "policy")}

    @property
    def replay(self) -> dict[str, Any]:
        """Options of a call that learns from three iterations, each sampled by another policy."""
        ages = (2, 1, 0)
        return {
            "advantages": [str(self.folder / f"trees{age}" / "advantages") for age in ages],
            "model": str(self.folder / "sampler0"),
            "replay": len(ages),
            "max_per_question": 5,
            "per_device_batch_size": 2,
            "gradient_accumulation_steps": 3,
        }

    @property
    def sparse(self) -> dict[str, Any]:
        """Options under which most trajectories keep no token: in a step, two, one or no trajectories keep some."""
        return {"advantages": [str(self.folder / "sparse" / "advantages")], "gradient_accumulation_steps": 3}

    def launch(self, ranks: int, jobs: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        """Run all jobs in one start of the launcher."""
        (self.folder / "jobs.json").write_text(json.dumps(jobs))
        return torchrun(ranks, "-m", "tests.optimization.rank_jobs", str(self.folder))

    def outcome(self, name: str, rank: int) -> dict[str, Any]:
        """Return the outcome of a call on one rank, as `rank_jobs` wrote it."""
        return json.loads((self.folder / f"{name}.{rank}.json").read_text())

    def run_in_process(self, name: str, **changes: Any) -> None:
        """Train with the same options in this process, with the torch engine."""
        given = self.options(name, **changes)
        given |= {"advantages": tuple(map(Path, given["advantages"])), "out": Path(given["out"])}
        train.run(train.Config(**given))


def free_port() -> int:
    """Return an unused port of the loopback interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(ranks: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on local ranks with torchrun."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}")
    return launched(sys.executable, *launcher, *command)


def launched(*command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher on the CPU, without compilation; `changes` are environment variables."""
    environment = {"TORCHDYNAMO_DISABLE": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment | changes,
        capture_output=True,
        text=True,
        check=False,
    )


def metrics(directory: Path) -> list[dict[str, float]]:
    """Return the metrics of every step."""
    return [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]


def curve(directory: Path) -> list[list[float]]:
    """Return the metrics named in `CURVE`, one list per step."""
    return [[line.get(name, 0.0) for name in CURVE] for line in metrics(directory)]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint: weights, adapter and optimizer state."""
    files = [directory / name for name in ("model.safetensors", "adapter_model.safetensors", "optimizer.state")]
    return {name: value for file in files if file.exists() for name, value in load_file(file).items()}


def agree(one: Path, other: Path, tolerance: float = 1e-5) -> bool:
    """Return whether metrics, weights and optimizer state are equal up to rounding."""
    first, second = weights(one), weights(other)
    tensors_agree = all(torch.allclose(first[name], second[name], rtol=tolerance, atol=tolerance) for name in first)
    curves_agree = torch.allclose(torch.tensor(curve(one)), torch.tensor(curve(other)), rtol=1e-4, atol=1e-5)
    return first.keys() == second.keys() and tensors_agree and curves_agree


def skipped(directory: Path, reason: str = "ratio") -> list[float | None]:
    """Return `skipped/REASON` of every step: 1 for a skipped step, None for others."""
    return [line.get(f"skipped/{reason}") for line in metrics(directory)]


def equal(one: Path, other: Path) -> bool:
    """Return whether weights and optimizer state are exactly equal."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
