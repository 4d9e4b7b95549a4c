"""The arithmetic task: random access to questions, disjoint splits, demonstrations with fixed wrong facts."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.tasks import SPLITS, Question, open_task

TASK = open_task("arithmetic")
STEP = re.compile(r"([B-Z])([-+*])([0-9])=([0-9])[;.,]")


def value_of(prompt: str) -> int:
    """Return the value of a prompt, computed without the arithmetic of the task."""
    value = int(prompt[0])
    for sign, operand in re.findall(r"[B-Z]([-+*])([0-9])", prompt):
        value = int(eval(f"{value}{sign}{operand}"))
    return value % 10


def steps_of(question: Question) -> list[tuple[int, str, int, int]]:
    """Return (value before, sign, operand, stated value) of each step of the demonstration."""
    assert question.solution is not None
    before, steps = int(question.prompt[0]), []
    for _, sign, operand, after in STEP.findall(question.solution):
        steps.append((before, sign, int(operand), int(after)))
        before = int(after)
    return steps


def right(value: int, sign: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[sign] % 10


def test_a_prompt_shows_a_chain_and_its_demonstration_copies_it():
    for question in TASK.questions("train")[:50]:
        assert re.fullmatch(r"[0-9](?:[B-G](?:[-+][0-9]|\*[379])){6}H", question.prompt)
        assert question.solution is not None
        assert STEP.sub("", question.solution) == f"#{steps_of(question)[-1][3]}"
        copied = "".join(f"{label}{sign}{b}" for label, sign, b, _ in STEP.findall(question.solution))
        assert question.prompt[1:-1] == copied
        assert len(question.solution) == 38  # and the end token: 39


def test_the_reference_is_the_true_value_modulo_ten():
    for question in TASK.questions("test")[:200]:
        assert question.reference == str(value_of(question.prompt))


def test_all_answers_are_about_equally_frequent():
    counts = Counter(question.reference for question in TASK.questions("test")[:1000])
    assert len(counts) == 10
    assert all(55 < count < 145 for count in counts.values())  # 100 ± 4.7 standard errors


def test_indexing_agrees_with_slicing():
    questions = TASK.questions("validation")
    whole = questions[:40]
    assert questions[7:19] == whole[7:19]
    assert questions[13] == whole[13]
    assert questions[-1] == questions[len(questions) - 1]
    assert TASK.questions("train")[123_456_789].id == "arithmetic-train-123456789"
    with pytest.raises(IndexError):
        questions[len(questions)]


def test_the_seed_determines_the_questions():
    again = open_task("arithmetic", None, ["seed=0"])
    other = open_task("arithmetic", None, ["seed=1"])
    assert again.questions("train")[:20] == TASK.questions("train")[:20]
    assert again.digest == TASK.digest
    assert other.questions("train")[:20] != TASK.questions("train")[:20]
    assert other.digest != TASK.digest


def test_no_question_is_in_two_splits_even_under_another_seed():
    """With one operation there are 230 questions, so that 400 draws contain nearly all questions of a split."""
    prompts = {
        split: {
            question.prompt
            for seed in (0, 1)
            for question in open_task("arithmetic", None, ["operations=1", f"seed={seed}"]).questions(split)[:400]
        }
        for split in SPLITS
    }
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) > 200
    assert all(len(of_split) > 30 for of_split in prompts.values())


def test_a_fifth_of_the_facts_has_one_wrong_result_stated_about_half_of_the_time():
    stated: dict[tuple[int, str, int], Counter[int]] = {}
    for question in TASK.questions("train")[:1500]:
        for before, sign, operand, after in steps_of(question):
            stated.setdefault((before, sign, operand), Counter())[after] += 1
    wrong = {fact: results for fact, results in stated.items() if set(results) != {right(*fact)}}
    assert len(stated) == 230
    assert len(wrong) == 46
    assert all(len(results) == 2 for results in wrong.values())
    shown = sum(results.total() - results[right(*fact)] for fact, results in wrong.items())
    assert abs(shown / sum(results.total() for results in wrong.values()) - 0.55) < 0.04


def test_separators_are_equally_frequent():
    separators = Counter(c for q in TASK.questions("train")[:500] for c in q.solution or "" if c in ";.,")
    assert len(separators) == 3
    assert all(850 < count < 1150 for count in separators.values())  # of 3,000


def test_options_change_the_task():
    without_wrong_facts = open_task("arithmetic", None, ["wrong_share=0", "operations=3"])
    for question in without_wrong_facts.questions("train")[:50]:
        assert len(steps_of(question)) == 3
        assert without_wrong_facts.verify(question.solution or "", question.reference).reward == 1.0


def test_a_small_train_split_is_the_start_of_the_large_one():
    small = open_task("arithmetic", None, ["train_questions=5"])
    assert list(small.questions("train")) == TASK.questions("train")[:5]
    assert len(small.questions("test")) == len(TASK.questions("test"))


@pytest.mark.parametrize(
    ("arg", "problem"),
    [
        ("digits=3", "no option 'digits'; its options and their defaults: operations=6, wrong_share=0.2"),
        ("operations=six", "operations must be of type int; got 'six'"),
        ("operations=0", "operations must be at least 1; got 0"),
        ("operations=-1", "operations must be at least 1; got -1"),
        ("wrong_rate=1.5", "wrong_rate must be at most 1; got 1.5"),
        ("operations", "key=value"),
    ],
)
def test_the_error_for_an_invalid_option_names_what_is_valid(arg: str, problem: str):
    with pytest.raises(UserError, match=re.escape(problem)):
        open_task("arithmetic", None, [arg])


def test_the_task_takes_no_data_and_no_option_twice():
    with pytest.raises(
        UserError,
        match=r"takes no --data; got questions.jsonl. If the data is for another task .* --data TASK=questions.jsonl",
    ):
        open_task("arithmetic", "questions.jsonl")
    with pytest.raises(UserError, match="each key once"):
        open_task("arithmetic", None, ["seed=1", "seed=2"])
    with pytest.raises(UserError, match="must be one of arithmetic, gsm8k"):
        open_task("chess")


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("B+1=2;#2", "2", 1.0),
        ("#2", "2", 1.0),
        ("#3", "3", 0.0),
        ("#3#2", "2", 1.0),
        ("#", None, 0.0),
        ("", None, 0.0),
        ("2", None, 0.0),
        ("#22", None, 0.0),
        ("#2 ", None, 0.0),
        ("#2#", None, 0.0),
        ("#٢", None, 0.0),  # the digit two of another script
        ("#²", None, 0.0),
    ],
)
def test_only_a_single_digit_after_the_last_mark_counts(response: str, answer: str | None, reward: float):
    verdict = TASK.verify(response, "2")
    assert (verdict.answer, verdict.reward) == (answer, reward)


@given(st.text())
def test_any_response_gets_a_verdict(response: str):
    assert TASK.verify(response, "2").reward in (0.0, 1.0)
