"""Prepare for Ray before any test module imports it; without it, no test of this folder is collected."""

from __future__ import annotations

from importlib.util import find_spec

from stages.cluster.environment import prepare_environment
from stages.configs.execution import Cluster

if find_spec("ray"):
    prepare_environment(Cluster())
else:
    collect_ignore_glob = ["test_*.py"]
