"""Pack named arrays and JSON values into the bytes that the page of a report reads (`page/data.js`).

Layout before compression: the length of the head (uint32, little-endian), the head as JSON in UTF-8, then the arrays
end to end. The head describes each array: its type, where it begins, and its number of values. The bytes of a value
are stored plane by plane (all first bytes, then all second bytes …), because gzip finds more repetition that way.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.shards.lineage import canonical_json

_TYPES = {"u1", "u2", "u4", "i4", "f4", "f8"}
_LEVEL = 6  # of gzip: 9 takes three times as long and saves 1 %


def pack(values: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> str:
    """Return the base64 text of the gzip of values and arrays; the same content gives the same text.

    Args:
      values: JSON values by name.
      arrays: one-dimensional arrays by name, of the types uint8, uint16, uint32, int32, float32 and float64.

    Raises:
      ValueError: an array has another type or shape.
    """
    described, planes, begin = {}, [], 0
    for name, array in arrays.items():
        kind = array.dtype.newbyteorder("<").str.lstrip("<|")
        if kind not in _TYPES or array.ndim != 1:
            raise ValueError(f"{name} must be one of {sorted(_TYPES)} and one-dimensional; got {kind} {array.shape}")
        described[name] = [kind, begin, array.size]
        planes.append(_planes(array))
        begin += array.nbytes
    head = json.dumps({**json.loads(canonical_json(dict(values))), "arrays": described}, ensure_ascii=False)
    encoded = head.encode("utf-8", "surrogatepass")
    content = b"".join([len(encoded).to_bytes(4, "little"), encoded, *planes])
    return base64.b64encode(gzip.compress(content, _LEVEL, mtime=0)).decode("ascii")


def smallest(values: NDArray[np.integer]) -> NDArray:
    """Return non-negative integers in the smallest of the unsigned types that holds them all."""
    largest = int(values.max(initial=0))
    return values.astype(np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.uint32)


def _planes(array: NDArray) -> bytes:
    """Return the bytes of an array, plane by plane."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.view(np.uint8).reshape(-1, little.itemsize).T.tobytes() if little.size else b""
