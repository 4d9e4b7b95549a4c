"""The knights-and-knaves task: each puzzle has one solution, checked by parsing its sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.tasks import SPLITS, open_task
from stages.tasks.knights_and_knaves import KnightsAndKnaves, KnightsAndKnavesOptions, Statement, consistent_worlds

TASK = KnightsAndKnaves(KnightsAndKnavesOptions())


def holds(text: str, roles: Mapping[str, str], speaker: str) -> bool:
    """Return whether a sentence is true, by parsing it: independent of the truth tables of the task."""
    text = text.strip()
    while text.startswith("(") and _closing(text) == len(text) - 1:
        text = text[1:-1]
    if text.lower().startswith("it is not true that "):
        return not holds(text[len("it is not true that ") :], roles, speaker)
    for word, rule in [
        (" if and only if ", lambda a, b: a == b),
        (", then ", lambda a, b: not a or b),
        (", and ", lambda a, b: a and b),
        (", or ", lambda a, b: a or b),
    ]:
        if (place := _outside(text, word)) is not None:
            left, right = text[:place], text[place + len(word) :]
            left = re.sub(r"^[Ii]f ", "", left) if word == ", then " else left
            return rule(holds(left, roles, speaker), holds(right, roles, speaker))
    subject, role = re.fullmatch(r"(\w+) (?:is|am) a (knight|knave)", text).groups()  # type: ignore[union-attr]
    return roles[speaker if subject == "I" else subject] == role


def _closing(text: str) -> int:
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    raise AssertionError(text)


def _outside(text: str, word: str) -> int | None:
    """Return the position of a word outside all parentheses; None if there is none."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and text.startswith(word, place):
            return place
    return None


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 1000), st.integers(0, 1000), st.sampled_from(SPLITS))
def test_the_reference_is_the_only_consistent_assignment(people, depth, seed, index, split):
    task = KnightsAndKnaves(KnightsAndKnavesOptions(people=people, depth=depth, seed=seed))
    question = task.question(split, index)
    said = dict(re.findall(r'(\w+) says: "([^"]*)\."', question.prompt))
    assert len(said) == people
    consistent = []
    for chosen in product(("knight", "knave"), repeat=people):
        roles = dict(zip(said, chosen, strict=True))
        if all((roles[name] == "knight") == holds(text, roles, name) for name, text in said.items()):
            consistent.append(", ".join(f"{name} is a {role}" for name, role in roles.items()))
    assert consistent == [question.reference]
    assert task.verify(question.solution or "", question.reference).reward == 1.0


def test_consistent_worlds_worked_by_hand():
    """Two people; worlds 0 to 3 are (B A) = 00, 01, 10, 11. A says "B is a knave", which is true in worlds 0 and 1. B
    says "A is a knight", true in 1 and 3. A's statement is consistent with worlds 1 (A knight, true) and 2 (A knave,
    false), B's with 0 and 3, so no world is consistent with both."""
    one, two = Statement("", 0b0011), Statement("", 0b1010)
    assert consistent_worlds([one], 2) == 0b0110
    assert consistent_worlds([one, two], 2) == 0


def test_the_first_question_never_changes():
    first = open_task("knights-and-knaves").questions("train")[0]
    assert first == TASK.question("train", 0)
    assert first.id == "knights-and-knaves-train-0"
    assert first.prompt == (
        "On an island everybody is either a knight, who always tells the truth, or a knave, who always lies. "
        'You meet Ava, Dan and Finn. Ava says: "It is not true that Dan is a knight." '
        'Dan says: "If Finn is a knave, then Ava is a knight." Finn says: "If I am a knave, then Dan is a knave." '
        "Who is what? Put the answer within \\boxed{}, in the form: "
        "Ava is a knight/knave, Dan is a knight/knave, Finn is a knight/knave."
    )
    assert first.reference == "Ava is a knave, Dan is a knight, Finn is a knight"
    assert first.metadata == {"level": "3 people"}


def test_splits_share_no_question_whatever_the_seed():
    prompts = {
        split: {
            question.prompt
            for seed in range(3)
            for question in KnightsAndKnaves(KnightsAndKnavesOptions(people=2, seed=seed)).questions(split)[:150]
        }
        for split in SPLITS
    }
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]


REFERENCE = "Ava is a knight, Ben is a knave"


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        (r"\boxed{Ava is a knight, Ben is a knave}", REFERENCE, 1.0),
        (r"\boxed{\text{Ben is a knave}, \text{Ava is a knight}}", REFERENCE, 1.0),
        (r"\boxed{Ava: knight; Ben: knave}", REFERENCE, 1.0),
        ("Answer: Ben is a knave and Ava is a knight.", REFERENCE, 1.0),
        (r"\boxed{Ava is a knight, Ben is a knight}", "Ava is a knight, Ben is a knight", 0.0),
        (r"\boxed{Ava is a knight}", None, 0.0),
        (r"\boxed{Ava is a knight, Ben is a knave, Ava is a knave}", None, 0.0),
        (r"\boxed{Ava is a knight, Ben is a knave, Cleo is a knave}", None, 0.0),
        (r"\boxed{Ava is a knight/knave, Ben is a knight/knave}", None, 0.0),
        (REFERENCE, None, 0.0),
        (r"<think>\boxed{Ava is a knight, Ben is a knave}</think> I do not know", None, 0.0),
        ("", None, 0.0),
    ],
)
def test_the_claims_in_the_last_box_decide(response: str, answer: str | None, reward: float):
    verdict = TASK.verify(response, REFERENCE)
    assert (verdict.answer, verdict.reward) == (answer, reward)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["people=1"], "--task-arg people must be at least 2"),
        (["depth=0"], "--task-arg depth must be at least 1"),
        (["people=three"], "--task-arg people must be of type int; got 'three'"),
    ],
)
def test_an_invalid_option_or_data_is_an_error(args: list[str], problem: str):
    with pytest.raises(UserError, match=problem):
        open_task("knights-and-knaves", None, args)
    with pytest.raises(UserError, match="generates its own questions and takes no --data"):
        open_task("knights-and-knaves", "data")
