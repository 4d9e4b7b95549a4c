"""Verdicts on responses of every kind that models write: right ones earn 1, wrong ones never do."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.tasks.graders import GRADERS

CASES = Path(__file__).parent / "cases"
FEWEST_OF_A_KIND = 10


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


OWN = [*read(CASES / "grading.jsonl"), *read(CASES / "kinds.jsonl")]
PUBLIC = read(CASES / "public_suites.jsonl")
"""Pairs of gold and prediction, and the verdict of the suite where it is right by the texts alone; `source` names
repository and commit. Long responses are shortened to their box. `policy` says why our verdict is another."""


def wrongly_judged(grader: str, cases: list[tuple[str, str, bool]]) -> list[tuple[str, str, float | None]]:
    verdicts = GRADERS[grader].verify_all([case[0] for case in cases], [case[1] for case in cases])
    return [
        (response[:200], gold, verdict.reward)
        for (response, gold, right), verdict in zip(cases, verdicts, strict=True)
        if verdict.reward != float(right)
    ]


def test_every_kind_has_right_and_wrong_cases():
    counts = Counter(case["kind"] for case in OWN)
    assert min(counts.values()) >= FEWEST_OF_A_KIND
    for kind in counts:
        assert {case["right"] for case in OWN if case["kind"] == kind} == {True, False}


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in OWN}))
def test_cases_of_a_kind_are_judged_as_expected(kind: str):
    for grader in ("maths", "number"):
        chosen = [case for case in OWN if (case["kind"], case["grader"]) == (kind, grader)]
        assert not wrongly_judged(grader, [(c["response"], c["gold"], c["right"]) for c in chosen])


@pytest.mark.parametrize("source", sorted({case["source"] for case in PUBLIC}))
def test_cases_of_public_suites_are_judged_as_expected(source: str):
    chosen = [case for case in PUBLIC if case["source"] == source]
    assert not wrongly_judged("maths", [(c["response"], c["gold"], c["right"]) for c in chosen])


def test_a_public_case_with_another_verdict_names_the_policy():
    policies = {case["policy"] for case in PUBLIC if "policy" in case}
    assert "a rounded decimal is another value" in policies
    assert len(PUBLIC) > 300


@pytest.mark.parametrize(("kind", "grader"), [("math", "maths"), ("gsm8k", "number")])
def test_golden_cases_of_hard_kinds_are_all_judged_as_expected(shared: Path, kind: str, grader: str):
    cases = [case for case in read(shared / "golden" / "grader_cases_2.jsonl") if case["kind"] == kind]
    chosen = [(case["prediction_text"], case["gold_answer"], case["expected_correct"]) for case in cases]
    assert len(chosen) >= 18
    assert not wrongly_judged(grader, chosen)


@pytest.mark.parametrize(("kind", "grader"), [("math", "maths"), ("gsm8k", "number")])
def test_no_wrong_golden_answer_is_accepted(shared: Path, kind: str, grader: str):
    cases = read(shared / "golden" / "grader_cases.jsonl")
    wrong = [case for case in cases if case["kind"] == kind and not case["expected_correct"]]
    assert len(wrong) > 30
    assert not wrongly_judged(grader, [(case["prediction_text"], case["gold_answer"], False) for case in wrong])
