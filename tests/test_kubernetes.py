"""The manifest of a Ray cluster has the fields that KubeRay requires."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

MANIFEST = Path(__file__).resolve().parents[1] / "examples" / "kubernetes" / "raycluster.yaml"


def test_the_manifest_is_a_ray_cluster():
    """Required fields: the custom resource RayCluster, ray.io/v1, of KubeRay (ray-operator/config/crd)."""
    cluster: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups[1:]:
        assert isinstance(group["groupName"], str)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert container["image"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        for amounts in container["resources"].values():
            assert all(isinstance(amount, str) for amount in amounts.values())
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_pods_run_the_version_of_ray_that_is_pinned():
    constraints = (MANIFEST.parents[2] / "constraints.txt").read_text().splitlines()
    version = yaml.safe_load(MANIFEST.read_text())["spec"]["rayVersion"]
    assert f"ray=={version}" in constraints
