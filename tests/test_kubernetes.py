"""The manifest of a Ray cluster has the fields that KubeRay requires."""

from __future__ import annotations

import os
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


def test_the_manifest_follows_the_definition_of_the_resource():
    """`KUBERAY_CRD` names `ray-operator/config/crd/bases/ray.io_rayclusters.yaml` of a copy of KubeRay."""
    jsonschema = pytest.importorskip("jsonschema")
    if not (path := os.environ.get("KUBERAY_CRD")):
        pytest.skip("KUBERAY_CRD names no copy of KubeRay's definition of RayCluster")
    definition: dict[str, Any] = yaml.load(Path(path).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = without_unknown_fields(version["schema"]["openAPIV3Schema"])
    cluster = yaml.safe_load(MANIFEST.read_text())
    cluster["metadata"] = {}  # the definition leaves its fields to Kubernetes
    jsonschema.validate(cluster, schema)
    cluster["spec"]["workerGroupSpecs"][0]["replica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="'replica' was unexpected"):
        jsonschema.validate(cluster, schema)


def without_unknown_fields(node: Any) -> Any:
    """Return a schema that refuses unknown fields, as Kubernetes does under strict validation."""
    if isinstance(node, list):
        return [without_unknown_fields(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {name: without_unknown_fields(one) for name, one in node.items()}
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found
