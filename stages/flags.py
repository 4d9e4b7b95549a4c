"""The flags that several verbs share, each documented once: the task, how tokens are sampled, the engine, the output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.config import option

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Where and how fast; none of it changes what is sampled, but for `dtype`."""

    engine: Literal["transformers"] = option("Sampling engine.", default="transformers", result=False)
    device: str = option("auto, cpu, cuda or cuda:N.", default="auto", result=False)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "Number format of the model; auto is bfloat16 where the device has it, else float32.", default="auto"
    )
    threads: int | None = option(
        "CPU threads; left out, torch decides. A tiny model is fastest with 1.", default=None, result=False, minimum=1
    )
    max_batch_rows: int | None = option(
        "Most samples in flight; left out, the engine decides.", default=None, result=False, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """Where a sharded artefact goes."""

    out: Path = option("Directory of the artefact that is written.", result=False, short="--output-dir")
    shard: str | None = option(
        "Which share of the work: I/N with I from 0 to N-1. Left out, the SLURM array variables decide, else 0/1.",
        default=None,
        result=False,
    )
    overwrite: bool = option(
        "Replace parts that were made with another configuration.", default=False, result=False
    )
