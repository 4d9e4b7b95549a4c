"""The packed data set of a report: read again here as the page reads it."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np
import pytest

from stages.reporting.columns import pack, smallest


def test_packed_arrays_are_read_back_value_by_value_from_planes_of_bytes():
    numbers, flags = np.array([1.5, -2.25, np.nan], np.float64), np.array([1, 0, 1, 1], np.uint8)
    content = gzip.decompress(base64.b64decode(pack({"title": "é"}, {"numbers": numbers, "flags": flags})))
    size = int.from_bytes(content[:4], "little")
    head, body = json.loads(content[4 : 4 + size]), content[4 + size :]
    assert head["title"] == "é"
    kind, begin, count = head["arrays"]["numbers"]
    planes = np.frombuffer(body[begin : begin + 8 * count], np.uint8).reshape(8, count)
    np.testing.assert_array_equal(planes.T.copy().view("<f8").ravel(), numbers)
    assert (kind, head["arrays"]["flags"]) == ("f8", ["u1", 24, 4])
    assert body[24:] == bytes([1, 0, 1, 1])


def test_the_same_content_gives_the_same_text_and_other_types_are_refused():
    assert pack({"a": 1}, {}) == pack({"a": 1}, {})
    with pytest.raises(ValueError, match="int64"):
        pack({}, {"int64": np.zeros(2, np.int64)})


def test_integers_take_the_smallest_type_that_holds_them():
    assert [smallest(np.array([0, top])).dtype.itemsize for top in (255, 256, 65536)] == [1, 2, 4]
