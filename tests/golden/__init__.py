"""Load numbers of the authors' released code for the parity tests; README.md describes the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS_AS_TEXT = ("nan", "NaN", "inf", "-inf", "Infinity", "-Infinity")  # JSON has no spelling for these


def load_golden(name: str) -> dict[str, Any]:
    """Return the content of a file of cases, {"meta": …, "cases": […]}, with every NaN and infinity as a float."""
    content = json.loads((Path(__file__).parent / name).read_text())
    return {"meta": content["meta"], "cases": [_parse_numbers(case) for case in content["cases"]]}


def assert_close(found: Any, expected: Any, case: dict[str, Any], tolerance: float = 1e-6) -> None:
    """Assert that two arrays agree within an absolute tolerance; a failure names the case."""
    np.testing.assert_allclose(
        np.asarray(found, np.float64), np.asarray(expected, np.float64), rtol=0, atol=tolerance, err_msg=case["name"]
    )


def _parse_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _parse_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_parse_numbers(item) for item in value]
    return float(value) if value in _NUMBERS_AS_TEXT else value
