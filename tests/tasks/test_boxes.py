"""The answer of a response: the last box after the thinking."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.tasks.boxes import after_thinking, find_boxes, last_box
from tests.pace import within


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{4}.", "4"),
        (r"\boxed{3}, no: \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \left\{1, 2\right\} }", r"\left\{1, 2\right\}"),
        (r"\boxed{x = \boxed{4}}", r"x = \boxed{4}"),
        (r"\fbox{4}", "4"),
        (r"\boxed {4}", "4"),
        (r"\boxed 7.", "7"),
        (r"\\boxed{4}", "4"),
        (r"} {\boxed{4}", "4"),
        (r"\boxed{}", None),
        (r"\boxed{4}, within \boxed{}", "4"),
        (r"\boxed{ \ldots }", None),
        (r"\boxed{\text{your answer}}", None),
        (r"\boxed{0}", "0"),
        (r"<think>\boxed{3}</think> \boxed{4}", "4"),
        (r"<think>\boxed{3}</think> so it is 4", None),
        (r"\boxed{3} then \boxed{4", None),
        ("no box", None),
        (r"\boxed", None),
    ],
)
def test_the_last_box_after_the_thinking_is_the_answer(text: str, content: str | None):
    assert last_box(text) == content


def test_a_text_without_an_end_of_thinking_counts_whole():
    assert after_thinking("<think> hm") == "<think> hm"
    assert after_thinking("a</think>b</think>c") == "c"


def test_control_tokens_at_the_end_are_left_out():
    assert after_thinking("5<|im_end|>\n<|im_start|>user") == "5"
    assert after_thinking("5</s></s>") == "5"
    assert after_thinking("<|a|> 5") == "<|a|> 5"


@given(st.text(alphabet=r"\{} boxed4", max_size=80))
def test_boxes_are_outermost_in_order_and_balanced(text: str):
    boxes, _ = find_boxes(text)
    for box in boxes:
        assert box.content in text[box.start : box.end]
    assert all(before.end <= after.start for before, after in pairwise(boxes))


@pytest.mark.parametrize("fragment", ["\\boxed{", "{", "}", "\\", "\\boxed ", "\\boxed{}{", "\\boxed{\\boxed{1}}"])
def test_hostile_text_is_read_in_linear_time(fragment: str):
    with within(5):
        last_box(fragment * 200_000)
