"""What a verdict says beside the reward: the answer as stated, its place, and the reason."""

from __future__ import annotations

import pytest

from stages.tasks import open_task
from stages.tasks.verdicts import Place, Reason

ROLES = "Ann is a knight, Bob is a knave"


@pytest.mark.parametrize(
    ("task", "response", "reference", "place", "reason"),
    [
        ("arithmetic", "B+1=4;#4", "4", Place.MARK, Reason.EQUAL),
        ("arithmetic", "B+1=4;", "4", Place.NOWHERE, Reason.NO_ANSWER),
        ("game24", r"\boxed{(1 + 2 + 3) * 4}", "1 2 3 4", Place.BOX, Reason.EQUAL),
        ("game24", r"\boxed{1 + 2 + 3 + 4}", "1 2 3 4", Place.BOX, Reason.DIFFERENT),
        ("game24", r"\boxed{1 + 2 +}", "1 2 3 4", Place.BOX, Reason.INVALID),
        ("knights-and-knaves", rf"\boxed{{{ROLES}}}", ROLES, Place.BOX, Reason.EQUAL),
        ("knights-and-knaves", f"Answer: {ROLES}", ROLES, Place.ANNOUNCED, Reason.EQUAL),
        ("knights-and-knaves", "Answer: Ann is a knight", ROLES, Place.ANNOUNCED, Reason.INVALID),
        ("knights-and-knaves", "I give up", ROLES, Place.NOWHERE, Reason.NO_ANSWER),
        ("gsm8k", "so\n#### 17", "18", Place.MARK, Reason.DIFFERENT),
        ("gsm8k", "so 18 eggs", "18", Place.LAST_NUMBER, Reason.EQUAL),
        ("gsm8k", "no idea", "18", Place.NOWHERE, Reason.NO_ANSWER),
        ("math", r"so \boxed{18}", "18", Place.BOX, Reason.EQUAL),
        ("math", r"so \boxed{x+1}", "18", Place.BOX, Reason.DIFFERENT),
    ],
)
def test_every_verdict_has_the_place_of_the_answer_and_a_reason(
    task: str, response: str, reference: str, place: Place, reason: Reason
):
    verdict = open_task(task).verify(response, reference)
    assert (verdict.place, verdict.reason) == (place, reason)
    assert verdict.reward == float(reason is Reason.EQUAL)
    assert (verdict.stated is None) == (place is Place.NOWHERE)
