"""A sample of the mutated inputs: none ends in a traceback, hangs, or passes with rows that are not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.domains import DOMAINS
from tests.fuzz.fuzzer import run_cases


@pytest.mark.parametrize("domain", DOMAINS)
def test_mutated_inputs_are_refused_in_one_line_or_sound(domain: str, tmp_path: Path):
    result = run_cases(tmp_path, domain, seed=0, share=0.1)
    assert not result.failures, "\n".join(map(str, result.failures))
    if domain in ("foreign parts", "recipes", "data", "models"):  # cases that all end alike would test nothing
        assert result.accepted
        assert result.refused


def test_a_whole_run_has_ten_thousand_cases():
    assert sum(count for _, count in DOMAINS.values()) == 10_000
