"""Turn the paths of sampled trees into whole responses, so that an audit can sample more rollouts along them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.paths import AnyPath, relative_path
from stages.core.storage import digest, replacing
from stages.shards.disk import disk_errors, write_parquet
from stages.shards.lineage import FOOTER_KEY, Source
from stages.shards.names import part_name
from stages.shards.parts import Artefact, artefact_source
from stages.shards.schemas import CUTPOINTS, TRAJECTORIES

Nodes = dict[tuple[str, int], str]
"""(leaf, number of a segment of its path) → the node that the segment is."""


def write_paths(trees: Artefact, cutpoints: Artefact, count: int, out: AnyPath) -> Nodes:
    """Write OUT/trajectories and OUT/cutpoints: the paths to some graded leaves, one segment for each node.

    The leaves are the first by a hash of their id. The lineage of the trajectories is that of the trees, whose options
    the rollouts need.

    Raises:
      UserError: a disk problem.
    """
    rows = {row["trajectory_id"]: row for row in trees.read_all(TRAJECTORIES.names).to_pylist()}
    parents = {row["parent_id"] for row in rows.values()}
    graded = [name for name, row in rows.items() if row["reward"] is not None and name not in parents]
    leaves = sorted(graded, key=lambda name: digest(name.encode()))[:count]
    cuts = cutpoints.read_all(["trajectory_id", "cutpoints"]).to_pylist()
    kept = {row["trajectory_id"]: row["cutpoints"] for row in cuts}
    paths = {leaf: _path(rows, leaf) for leaf in leaves}
    responses = [_response(path) for path in paths.values()]
    segments = [one for path in paths.values() for one in _segments(path, kept)]
    lineage = trees.lineage
    with disk_errors(out):
        metadata = {}
        if lineage is not None:
            model = lineage.model and _moved(trees, lineage.model, out / "trajectories")
            config = {**lineage.config, "paths": [digest("\n".join(leaves).encode())]}
            made_from = (artefact_source(trees, out / "trajectories"),)
            own = dataclasses.replace(lineage, config=config, model=model, inputs=made_from).at(0, 1)
            metadata = {FOOTER_KEY: own.to_json().encode()}
        _write(responses, TRAJECTORIES.arrow.with_metadata(metadata or None), out / "trajectories" / part_name(0, 1))
        _write(segments, CUTPOINTS.arrow, out / "cutpoints" / "segments.parquet")
    return {(leaf, i): row["trajectory_id"] for leaf, path in paths.items() for i, row in enumerate(path)}


def _write(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: AnyPath) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema)
    with replacing(path) as file:
        if schema.metadata:
            write_parquet(file, [table], schema, TRAJECTORIES.row_group)
        else:  # no output of spo, so it has no checksums either
            pq.write_table(table, file)


def _moved(trees: Artefact, model: Source, directory: AnyPath) -> Source:
    """Return the model of the trees as an input of work in another directory."""
    there = trees.locate(model.path)
    return dataclasses.replace(model, path=relative_path(there, directory)) if there.exists() else model


def _path(rows: dict[str, dict[str, Any]], leaf: str) -> list[dict[str, Any]]:
    """Return the nodes from the top of a tree to a leaf."""
    path = [rows[leaf]]
    while path[0]["parent_id"] is not None:
        path.insert(0, rows[path[0]["parent_id"]])
    return path


def _response(path: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined = {name: list(chain.from_iterable(row[name] for row in path)) for name in ("token_ids", "logprobs")}
    texts = [row["text"] for row in path]
    text = None if None in texts else "".join(texts)
    return path[-1] | joined | {"parent_id": None, "depth": 0, "text": text}


def _segments(path: Sequence[dict[str, Any]], kept: dict[str, list[int]]) -> list[dict[str, Any]]:
    segments, start = [], 0
    for i, row in enumerate(path):
        end = start + len(row["token_ids"])
        cutpoints = [start + offset for offset in kept.get(row["trajectory_id"], [])]
        names = {"trajectory_id": path[-1]["trajectory_id"], "segment_index": i}
        segments.append(names | {"start": start, "end": end, "cutpoints": cutpoints})
        start = end
    return segments
