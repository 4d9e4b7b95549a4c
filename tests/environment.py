"""The environment of tests and their child processes: the same in every shell and on every machine."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time

CLEARED_PREFIXES = (
    *("AWS_", "BOTO_", "GOOGLE_", "WANDB_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "SPO_", "XDG_"),
    *("SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "PMI_", "PMIX_", "OMPI_"),
    *("TORCHELASTIC_", "DS_", "VLLM_", "OMP_", "GOMP_", "KMP_", "LC_", "_TYPER_"),
)
CLEARED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "GROUP_RANK", "ROLE_RANK"),
    *("MASTER_ADDR", "MASTER_PORT", "LANG", "LANGUAGE", "PYTHONIOENCODING", "PYTHONWARNINGS", "MPLBACKEND", "NETRC"),
    *("COLUMNS", "LINES", "TERMINAL_WIDTH", "COLORTERM", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "CLICOLOR"),
    *("CLICOLOR_FORCE", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "SBATCH_EXPORT", "BASH_ENV", "ENV"),
    *("MKL_VERBOSE", "DNNL_VERBOSE", "ONEDNN_VERBOSE", "OPENBLAS_VERBOSE", "TORCH_LOGS", "TORCH_SHOW_CPP_STACKTRACES"),
)
"""Variables that redirect the program or its libraries, or add lines to their output. Variables that select the
instruction set (MKL_ENABLE_INSTRUCTIONS, ATEN_CPU_CAPABILITY, …) stay: they emulate another machine."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY")
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""They take the value of TEST_THREADS, by default 1: tiny models run fastest on one thread."""
FIXED = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow each other down where processes share cores
    # CPU only: on a GPU, `auto` chooses another dtype.
    **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), ""),
    "HF_HUB_OFFLINE": "1",  # no test reaches the network
    "TOKENIZERS_PARALLELISM": "false",
    "LC_ALL": "C.UTF-8",
    "TERM": "xterm",
    "TZ": "UTC",
}
UMASK = 0o022


def fix_environment() -> None:
    """Replace the variables, home and umask that this process inherited from the user's shell by fixed values."""
    for name in list(os.environ):
        if name.startswith(CLEARED_PREFIXES) or name in CLEARED or name.upper() in PROXIES:
            del os.environ[name]
    os.environ.update(FIXED | dict.fromkeys(THREAD_COUNTS, _num_threads()))
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker inherits the home of the process that started it
        os.environ["HOME"] = _empty_home()
    os.umask(UMASK)
    time.tzset()


def _num_threads() -> str:
    """Return the value of TEST_THREADS, the number of threads that each process of the suite computes with."""
    given = os.environ.get("TEST_THREADS") or "1"
    if not given.isdecimal() or int(given) == 0:
        raise ValueError(f"expected TEST_THREADS to be a whole number above 0, found {given!r}")
    return given


def _empty_home() -> str:
    """Return an empty home directory, without the user's caches and settings; delete it when this process ends."""
    home, owner = tempfile.mkdtemp(prefix="spo-home-"), os.getpid()

    def delete() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(home, ignore_errors=True)

    atexit.register(delete)
    return home
