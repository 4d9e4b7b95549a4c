"""Start or join a Ray cluster, and start workers in it. A local cluster listens on the loopback interface only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from stages.cluster.worker import Resources, Worker
from stages.configs.execution import Cluster
from stages.core.errors import SpoError, UserError, first_line
from stages.core.progress import Progress, Silent

_QUIET: dict[str, Any] = {"logging_level": "error", "log_to_driver": False, "configure_logging": False}
_STORE = 256 * 2**20  # bytes of shared memory for results on their way; those of a unit are a few megabytes


class Session:
    """A Ray cluster, at an address or local, and the workers that this process starts in it.

    It begins with the first worker and ends with the `with` block. `environment.prepare_environment` comes first.
    """

    def __init__(self, cluster: Cluster, logs: Path | None, progress: Progress = Silent()) -> None:
        """Describe the session.

        Args:
          logs: directory for the logs of the workers; None: Ray keeps them.

        Attributes:
          kept: groups of workers that one call leaves to the next, by name.
        """
        self.cluster, self.logs = cluster, logs
        self.progress = progress
        self.kept: dict[str, Any] = {}
        self._workers: list[Worker] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._begun = self._ended = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Start or join Ray; a second call does nothing.

        Raises:
          UserError: Ray does not start, or does not answer.
          SpoError: the session has ended; a thread that outlives it must not start another Ray.
        """
        if self._ended:
            raise SpoError("the Ray session has ended")
        if self._begun:
            return
        folder = None
        try:
            address = self.cluster.address
            # Ray reads this from a variable once, when it is imported: whether it may listen beyond this machine.
            ray_constants.ENABLE_RAY_CLUSTER = address is not None
            # Ray prints lost workers on standard output, where results belong; `crew` reports them.
            ray_worker.print_to_stdstream = lambda *_, **__: None
            if address is None:
                folder = Path(tempfile.mkdtemp(prefix="spo-ray-"))
                self._guard = _start_guard(self.cluster, folder)
                address = _await_address(self._guard)
            _join(address, folder)
        except BaseException:  # an interrupt, too, must not leave a Ray behind
            self._end_guard()
            raise
        self._begun = True
        where = "on this machine" if folder else f"at {self.cluster.address}"
        self.progress.note(f"Ray {where}" + (f", logs of the workers in {self.logs}" if self.logs else ""))

    @property
    def gpus(self) -> int:
        """Number of GPUs of the cluster."""
        self.begin()
        return int(ray.cluster_resources().get("GPU", 0))

    @property
    def workers(self) -> list[Worker]:
        """The workers that run."""
        with self._lock:
            return list(self._workers)

    def start(self, name: str, resources: Resources, environment: dict[str, str] | None = None) -> Worker:
        """Start a worker; it is ready when its first call returns.

        Args:
          name: for messages; its log is NAME.log.
          environment: variables of its process.
        """
        self.begin()
        log = self.logs / f"{name}.log" if self.logs else None
        worker = Worker(name, resources, log, environment or {})
        with self._lock:
            self._workers.append(worker)
        return worker

    def end(self, worker: Worker) -> None:
        """End a worker, whatever it does."""
        with self._lock, suppress(ValueError):
            self._workers.remove(worker)
        with suppress(Exception):  # it, or the whole Ray, may be gone
            worker.kill()

    def close(self) -> None:
        """End all workers and the connection, and the Ray if it was started here."""
        self._ended = True
        if not self._begun:
            return
        self._begun = False
        for worker in self.workers:
            self.end(worker)
        with _kept_handlers():
            ray.shutdown()
        self._end_guard()

    def _end_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard and guard.stdin:
            guard.stdin.close()
            guard.wait()
            if guard.stdout:
                guard.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start_guard(cluster: Cluster, folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that starts Ray, and ends it with this process."""
    workers = (cluster.samplers or 1) + (cluster.trainers or 1)
    options = {
        **_QUIET,
        "include_dashboard": False,
        "num_cpus": max(os.cpu_count() or 1, workers * cluster.cpus),
        "object_store_memory": _STORE,
    }
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("guard.py")), str(folder), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal reaches the command alone
    )


def _await_address(guard: subprocess.Popen[bytes]) -> str:
    """Return the address of the Ray that the guard starts.

    Raises:
      UserError: it did not start.
    """
    assert guard.stdout
    line = guard.stdout.readline()
    answer = json.loads(line) if line else {"error": "its process ended"}
    if "error" in answer:
        raise UserError(f"Ray did not start on this machine: {' '.join(answer['error'].split())}")
    return answer["address"]


def _join(address: str, folder: Path | None) -> None:
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray itself tries for a minute
            socket.create_connection((host, int(port)), timeout=10).close()
        with _kept_handlers():
            ray.init(address=address, **({"_temp_dir": str(folder)} if folder else {}), **_QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray answers at --address {address}: {first_line(error)}") from error


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Restore the signal handlers that Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
