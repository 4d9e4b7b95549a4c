"""Open a session of Ray where one is requested; imports Ray only then, and sets the variables that it reads."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stages.configs.execution import Cluster
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress

if TYPE_CHECKING:
    from stages.cluster.session import Session

WORKER_LOGS = "workers"
"""Name of the directory of the workers' logs, among the logs of an output or a run."""

_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on 127.0.0.1 only
    "RAY_AUTH_MODE": "token",
    "RAY_enable_worker_prestart": "0",  # start no more processes than workers
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",  # added to that of the command; Ray's 15 would let workers wait for everything else
    # A busy machine may start a process in minutes: then Ray's own limits would end it. `guard` ends all processes.
    "RAY_worker_register_timeout_seconds": "1800",
    "RAY_agent_register_timeout_ms": "1800000",
    "RAY_py_gcs_connect_timeout_s": "600",
    "RAY_gcs_server_request_timeout_seconds": "600",
    "RAY_gcs_rpc_server_connect_timeout_s": "600",
    "RAY_gcs_server_port_wait_time_s": "600",
    "RAY_health_check_failure_threshold": "200",
}


@contextmanager
def open_session(cluster: Cluster, logs: AnyPath, progress: Progress) -> Iterator[Session]:
    """Yield a session, which starts with its first worker.

    Args:
      logs: directory for the logs of the workers, named `WORKER_LOGS`; in an object store, Ray keeps
        them.

    Raises:
      UserError: Ray is not installed.
    """
    prepare_environment(cluster)
    from stages.cluster.session import Session  # imports Ray

    with Session(cluster, logs.absolute() if isinstance(logs, Path) else None, progress) as session:
        yield session


def prepare_environment(cluster: Cluster) -> None:
    """Set the variables of a local Ray cluster, for this process and its children, unless an existing one is joined.

    Raises:
      UserError: Ray is not installed, or was imported too early.
    """
    if find_spec("ray") is None:
        raise UserError("--executor ray: Ray is not installed; pip install 'spo-cli[ray]'")
    if cluster.address is None:
        os.environ.update(_LOCAL)
        if "ray" in sys.modules and "RAY_AUTH_TOKEN" not in os.environ:
            raise UserError(
                "this process has already imported Ray, so it cannot start a cluster with a key of its own: pass the "
                "address of a running one, or import Ray later"
            )
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # other users of this machine lack it
