"""A SLURM cluster of one node for a test session: its own munged, slurmctld and slurmd under a temporary directory.

It needs their programs (Debian packages slurm-wlm and munge), but no root, systemd, cgroups or accounts. It does not
touch any other SLURM installation of the machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PROGRAMS = (*DAEMONS, "sbatch", "squeue", "scancel", "scontrol", "srun")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

_CONF = """
ClusterName=spo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
AuthType=auth/munge
# a requeued job waits until its credential expires
AuthInfo=socket={place}/munge.socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MinJobAge=3600
KillWait=3
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
"""


def missing_programs() -> list[str]:
    """Return the programs of SLURM that this machine lacks."""
    return [program for program in PROGRAMS if not shutil.which(program, path=PATH)]


@contextmanager
def slurm(cpus: int = 64) -> Iterator[dict[str, str]]:
    """Run a cluster that reports `cpus` CPUs and two GPUs; yield the environment variables of its clients."""
    with (  # in /tmp, whatever TMPDIR is: the path of a socket must be short
        tempfile.TemporaryDirectory(prefix="spo-slurm-", dir="/tmp") as folder,
        ExitStack() as stack,
    ):
        place = Path(folder)
        _configure(place, cpus)
        environment = {"SLURM_CONF": str(place / "slurm.conf"), "PATH": PATH}
        munge = [f"--socket={place}/munge.socket", f"--key-file={place}/munge.key"]
        munge += [f"--{name}-file={place}/munged.{name}" for name in ("pid", "log", "seed")]
        for daemon in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D"],
            ["nice", "-n", "5", "slurmd", "-D"],  # jobs inherit it: tests that run at the same time have priority
        ):
            stack.enter_context(_running(daemon, {**os.environ, **environment}))
        _wait(lambda: _call(environment, "sinfo", "-h", "-o", "%t").strip() in ("idle", "mix", "alloc"), place)
        try:
            yield environment
        finally:
            _call(environment, "scancel", "--user", str(os.getuid()))
            with suppress(TimeoutError):
                _wait(lambda: not _call(environment, "squeue", "-h").strip(), place)


def _configure(place: Path, cpus: int) -> None:
    (place / "munge.key").touch(mode=0o600)
    (place / "munge.key").write_bytes(os.urandom(1024))
    host = socket.gethostname().partition(".")[0]
    for number in range(2):
        (place / f"gpu{number}").symlink_to("/dev/null")
    gpus = "".join(f"NodeName={host} Name=gpu File={place}/gpu{number}\n" for number in range(2))
    (place / "gres.conf").write_text(gpus)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    conf = _CONF.format(place=place, host=host, user=user, ports=_free_ports(), cpus=cpus, memory=cpus * 1024)
    (place / "slurm.conf").write_text(conf)
    for name in ("state", "spool"):
        (place / name).mkdir()
    place.chmod(0o755)


def _free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:  # both at once, so that they differ
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, other)]


def _call(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}).stdout


def _wait(until: Callable[[], bool], place: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            logs = "\n".join(path.read_text()[-2000:] for path in place.glob("*.log"))
            raise TimeoutError(f"the cluster did not reach the expected state within {seconds} s:\n{logs}")
        time.sleep(0.3)


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a daemon while the block lasts."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
