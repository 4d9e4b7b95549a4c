"""`spo doctor`: versions, hardware and the reproducibility of samples on this machine, for users and bug reports.

Every part may be missing: whatever cannot be imported, started or read becomes a line of the report, never an error.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.table import Table
from rich.text import Text

from spo_cli.console import print_line, print_results, print_wide
from stages.configs.doctor import Config
from stages.core.errors import SpoError, first_line
from stages.core.progress import Progress, Silent

NOT_INSTALLED = "not installed"
_PACKAGES = ("torch", "transformers", "pyarrow", "vllm", "deepspeed", "ray", "peft")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "MKL_CBWR")
_COMMAND_SECONDS = 10.0
_PRESET = "tiny"  # the quickstart's model

Section = dict[str, Any]
"""Name → value of the lines of a section."""


@dataclass(frozen=True)
class Report:
    """The sections of a report, and how they are printed."""

    sections: Mapping[str, Section]
    json: bool


def run(config: Config, progress: Progress = Silent()) -> Report:
    """Examine this machine."""
    torch = import_or_none("torch")
    sections = {
        "System": _system(),
        "Packages": {name: _version(name) for name in _PACKAGES},
        "CPU": _cpu(torch),
        "Threads": _threads(torch),
        "Libraries": _libraries(torch),
        "GPUs": _gpus(torch),
        "SLURM": {"sinfo": _command_output("sinfo", "--version")},
        f"Sampling with the preset {_PRESET}": _plan(None),
    }
    if config.model is not None:
        sections[f"Sampling with {config.model}"] = _plan(config.model)
    return Report(sections, config.json)


def report(found: Report) -> None:
    """Print the report: JSON, or a table for each section."""
    if found.json:
        return print_line(json.dumps(found.sections, indent=2, ensure_ascii=False))
    for title, section in found.sections.items():
        print_results(Text(title, "bold"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, value in section.items():
            table.add_row(Text(f"  {name}"), Text(str(value)))
        print_wide(table)
    return None


def import_or_none(name: str) -> ModuleType | None:
    """Import a module; return None if it is not installed or fails to import."""
    try:
        return importlib.import_module(name)
    except Exception:  # a broken installation raises anything; the versions of the report show the reason
        return None


def _system() -> Section:
    return {"spo": _version("spo-cli"), "Python": platform.python_version(), "OS": platform.platform()}


def _version(distribution: str) -> str:
    """Return the version of a distribution; the CPU build of vLLM is a distribution of its own."""
    for name, build in ((distribution, ""), (f"{distribution}-cpu", " (CPU build)")):
        try:
            return metadata.version(name) + build
        except metadata.PackageNotFoundError:
            continue
    return NOT_INSTALLED


def _cpu(torch: ModuleType | None) -> Section:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": _cpu_name(),
        "cores": f"{usable} usable of {os.cpu_count()}",
        "torch capability": torch.backends.cpu.get_cpu_capability() if torch else NOT_INSTALLED,
    }


def _cpu_name() -> str:
    """Return the name in /proc/cpuinfo, else Python's name of the processor."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _threads(torch: ModuleType | None) -> Section:
    variables = {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}
    return {"torch": torch.get_num_threads() if torch else NOT_INSTALLED, **variables}


def _libraries(torch: ModuleType | None) -> Section:
    """Return BLAS and oneDNN as torch was built with them; together with the CPU they decide the bits of a product."""
    if torch is None:
        return {"BLAS": NOT_INSTALLED, "oneDNN": NOT_INSTALLED}
    built = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", built)
    mkl = re.search(r"Math Kernel Library Version (\S+)", built)
    onednn = re.search(r"(?:MKL-DNN|oneDNN) v(\S+)", built)
    names = [match[1] for match in (blas, mkl) if match]
    return {"BLAS": " ".join(names) or "unknown", "oneDNN": onednn[1] if onednn else "none"}


def _gpus(torch: ModuleType | None) -> Section:
    if torch is None:
        return {"CUDA": "torch is not installed"}
    driver = _command_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found: Section = {"CUDA of torch": torch.version.cuda or "none", "driver": driver}
    if not torch.cuda.is_available():
        return found | {"GPUs": "none"}
    for index in range(torch.cuda.device_count()):
        try:
            properties = torch.cuda.get_device_properties(index)
        except (RuntimeError, AssertionError) as error:
            found[f"GPU {index}"] = first_line(error)
        else:
            found[f"GPU {index}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    return found


def _command_output(*command: str) -> str:
    """Return the first line that a command prints, or why there is none: programs of a cluster fail outside of it."""
    if shutil.which(command[0]) is None:
        return NOT_INSTALLED
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return f"installed, but fails: {first_line(error)}"
    if done.returncode:
        message = done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"
        return f"installed, but fails: {message}"
    return done.stdout.strip().partition("\n")[0] or "installed, prints nothing"


def _plan(model: str | None) -> Section:
    """Return how the embedded engine computes a model on this CPU, or why that is unknown."""
    probing = import_or_none("stages.sampling.embedded.plans")
    if probing is None:
        return {"samples": "unknown: torch or transformers is not installed"}
    try:
        plan = probing.preset_plan(_PRESET) if model is None else probing.directory_plan(model)
    except SpoError as error:
        return {"samples": f"unknown: {error}"}
    except Exception as error:  # a model of an unknown kind may fail anywhere in transformers
        return {"samples": f"unknown: {type(error).__name__}: {first_line(error)}"}
    return _describe(plan)


def _describe(plan: Any) -> Section:
    found: Section = {
        "samples on a CPU in float32": "bitwise independent of the batch" if plan.bitwise else "equal to rounding",
        "samples on a GPU or in bfloat16": "equal to rounding",
        "threads": plan.threads,
    }
    if not plan.bitwise:
        return found
    attention = plan.attention
    found["attention"] = (
        f"queries in multiples of {attention.queries}, sums over {attention.terms} keys"
        f"{', keys padded to whole sums' if attention.whole_terms else ''}"
        f"{', products of one shape' if attention.blocked else ''}"
    )
    for shape, linear in plan.linears.items():
        found[f"linear {shape.inputs}→{shape.outputs}"] = f"rows in multiples of {linear.multiple}, up to {linear.most}"
    return found
