r"""Verdicts on mathematical answers: the last box of a response compared with a reference, by math-verify in a sandbox.

    verify_all([r"so it is \boxed{\frac12}."], ["0.5"])     # [Verdict(answer="0.5", reward=1.0, …)]

Grading goes from cheap to expensive: find the answer (`maths_answers`), normalize it (`maths_normalization`), compare
it without algebra (`maths_shortcuts`, `maths_values`), and only then by algebra (`maths_algebra`) in processes with
limits (`sandbox`).

A reference is the bare answer (`\frac{1}{2}`, `1,234`, `\text{Evelyn}`) or a worked solution with the answer in its
last box. The first comparison by algebra starts the processes; they end with this process. Importing this file is
cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.tasks.maths_answers import (
    MAX_ANSWER_CHARACTERS,
    canonical_form,
    find_answer,
    read_reference,
    strip_announcement,
)
from stages.tasks.maths_normalization import align, is_list, normalize
from stages.tasks.maths_shortcuts import compare_cheaply
from stages.tasks.sandbox import SandboxedFunction
from stages.tasks.verdicts import Place, Reason, Step, Verdict, judge, no_answer

_MAX_ANNOUNCED_CHARACTERS = 200
"""The end of a text that is longer than this is no bare answer after "answer is"."""
_CACHE_SIZE = 50_000


class _Comparison(NamedTuple):
    """The arguments of `maths_algebra.compare_by_algebra`."""

    answer: str
    reference: str
    boxed: bool


_compare_by_algebra = SandboxedFunction("stages.tasks.maths_algebra:compare_by_algebra")
_verdicts: dict[_Comparison, Verdict] = {}
"""Verdicts of algebra so far: rollouts of a question repeat the same wrong answers."""


def verify(response: str, reference: str) -> Verdict:
    """Grade one response; see `verify_all`, which is faster for many."""
    return verify_all([response], [reference])[0]


def verify_all(responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
    """Return a verdict for each response.

    The answer is the content of the last box after any `</think>` or, without a box, what math-verify finds in the
    text. A right answer is returned in the canonical form of the reference, so that right answers are equal strings.

    An answer that algebra cannot compare within its limits of time and memory is ungradable (reward None). An answer
    that is longer than 2,000 characters, nested more than 30 deep, or neither mathematics nor the words of the
    reference, is wrong.

    Raises:
      SpoError: the grading processes did not start, or were killed from outside.
    """
    graded = [_verify_cheaply(*pair) for pair in zip(responses, references, strict=True)]
    needed = list(dict.fromkeys(one for one in graded if isinstance(one, _Comparison)))
    new = [comparison for comparison in needed if comparison not in _verdicts]
    if len(_verdicts) + len(new) > _CACHE_SIZE:
        _verdicts.clear()
        new = needed
    for comparison, result in zip(new, _compare_by_algebra(new), strict=True):
        _verdicts[comparison] = _verdict(comparison, result)
    return [_verdicts[one] if isinstance(one, _Comparison) else one for one in graded]


def close() -> None:
    """End the grading processes; the next comparison by algebra starts them again."""
    _compare_by_algebra.close()


def _verify_cheaply(response: str, reference: str) -> Verdict | _Comparison:
    """Return the verdict if it needs no algebra, else the comparison that algebra has to make."""
    expected = read_reference(reference)
    box, ending = find_answer(response, is_list(expected))
    if box is None and not ending.strip():
        return no_answer()
    if box is not None:
        candidate = box
    else:
        candidate = strip_announcement(ending) if len(ending) <= _MAX_ANNOUNCED_CHARACTERS else ""
    answer, gold = align(normalize(candidate), expected)
    is_right = compare_cheaply(answer, gold)
    place, stated = (Place.NOWHERE, ending) if box is None else (Place.BOX, box[:MAX_ANSWER_CHARACTERS])
    steps = (Step("normalize the answer", answer), Step("normalize the reference", gold))
    if is_right:
        return judge(canonical_form(expected), True, place, stated, *steps)
    if box is None:  # the ending is a text: the answer may be anywhere in it
        return _Comparison(ending, gold, False)
    if is_right is None:
        return _Comparison(answer, gold, True)
    return judge(canonical_form(stated) or None, False, place, stated, *steps)


def _verdict(comparison: _Comparison, result: tuple[bool, str | None] | None) -> Verdict:
    """Return the verdict of a comparison by algebra; a result of None means that it exceeded its limits."""
    place = Place.BOX if comparison.boxed else Place.WHOLE_TEXT
    if result is None:
        answer = canonical_form(comparison.answer) if comparison.boxed else None
        return Verdict(answer, None, Reason.UNGRADABLE, place, comparison.answer)
    is_right, found = result
    answer = comparison.answer if comparison.boxed else found
    if is_right:
        return judge(canonical_form(comparison.reference), True, place, answer or "")
    return judge(canonical_form(answer), False, place, answer) if answer else no_answer()
