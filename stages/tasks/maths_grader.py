r"""Verdicts on mathematical answers: what a response states compared with a reference.

    verify_all([r"so it is \boxed{\frac12}."], ["0.5"])     # [Verdict(answer="0.5", reward=1.0, …)]

Grading goes from cheap to expensive: find the answer (`answers`), normalize it (`maths_normalization`), compare it
without algebra (`maths_shortcuts`), and only then by algebra (`maths_algebra`) in processes with limits (`sandbox`).

A reference is the bare answer (`\frac{1}{2}`, `1,234`, `\text{Evelyn}`) or a worked solution with the answer in its
last box. The first comparison by algebra starts the processes; they end with this process. Importing this file is
cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.tasks.answers import find_answer
from stages.tasks.maths_answers import canonical_form, read_reference
from stages.tasks.maths_normalization import is_list, normalize
from stages.tasks.maths_rounding import is_misrounded
from stages.tasks.maths_shortcuts import Comparison, compare
from stages.tasks.numbers import ascii_digits
from stages.tasks.sandbox import SandboxedFunction
from stages.tasks.statements import MAX_ANSWER_CHARACTERS, Stated, value_in_sentence
from stages.tasks.verdicts import Reason, Step, Verdict

_CACHE_SIZE = 50_000


class _Undecided(NamedTuple):
    """A comparison that needs algebra, and what is known before it."""

    compared: Comparison
    stated: Stated
    reference: str
    steps: tuple[Step, ...]


_compare_by_algebra = SandboxedFunction("stages.tasks.maths_algebra:compare_by_algebra")
_verdicts: dict[tuple[str, str], bool | None] = {}
"""Results of algebra so far: rollouts of a question repeat the same wrong answers."""


def verify(response: str, reference: str) -> Verdict:
    """Grade one response; see `verify_all`, which is faster for many."""
    return verify_all([response], [reference])[0]


def verify_all(responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
    """Return a verdict for each response.

    A right answer is returned in the canonical form of the reference, so that right answers are equal strings.

    An answer that algebra cannot compare within its limits of time and memory is ungradable (reward None). An answer
    that is longer than 2,000 characters, nested more than 30 deep, or neither mathematics nor the words of the
    reference, is wrong.

    Raises:
      SpoError: the grading processes did not start, or were killed from outside.
    """
    graded = [_verify_cheaply(*pair) for pair in zip(responses, references, strict=True)]
    pairs = [(one.compared.answer, one.compared.reference) for one in graded if isinstance(one, _Undecided)]
    needed = list(dict.fromkeys(pairs))
    new = [pair for pair in needed if pair not in _verdicts]
    if len(_verdicts) + len(new) > _CACHE_SIZE:
        _verdicts.clear()
        new = needed
    _verdicts.update(zip(new, _compare_by_algebra(new), strict=True))
    return [_with_algebra(one) if isinstance(one, _Undecided) else one for one in graded]


def close() -> None:
    """End the grading processes; the next comparison by algebra starts them again."""
    _compare_by_algebra.close()


def _verify_cheaply(response: str, reference: str) -> Verdict | _Undecided:
    """Return the verdict if it needs no algebra, else the comparison that algebra has to make."""
    expected = read_reference(reference)
    stated = find_answer(ascii_digits(response), _is_list if is_list(expected) else None)
    if stated.text is None:
        return Verdict(None, 0.0, stated.reason, stated.place, None, stated.steps)
    compared = compare(normalize(stated.text), expected)
    steps = (*stated.steps, Step("read the answer", stated.text[:MAX_ANSWER_CHARACTERS]))
    if not compared.is_equal and (value := value_in_sentence(stated.text)) is not None:
        compared, steps = compare(normalize(value), expected), (*steps, Step("read the value in the sentence", value))
    if compared.is_equal is not False and is_misrounded(stated.text, reference):
        return _verdict(False, Reason.DIFFERENT, stated, expected, (*steps, Step("compare", "misrounded")))
    steps = (*steps, Step("compare", compared.answer), Step("with the reference", compared.reference))
    if compared.is_equal is None:
        return _Undecided(compared, stated, expected, steps)
    return _verdict(compared.is_equal, compared.reason, stated, expected, steps)


def _is_list(content: str) -> bool:
    return is_list(normalize(content[:MAX_ANSWER_CHARACTERS]))


def _with_algebra(undecided: _Undecided) -> Verdict:
    """Return the verdict of a comparison by algebra."""
    compared, stated, expected, steps = undecided
    is_right = _verdicts[compared.answer, compared.reference]
    result = "limits exceeded" if is_right is None else "equal" if is_right else "different"
    steps = (*steps, Step("compare by algebra", result))
    if is_right is None:
        text = (stated.text or "")[:MAX_ANSWER_CHARACTERS]
        return Verdict(canonical_form(text), None, Reason.UNGRADABLE, stated.place, text, steps)
    return _verdict(is_right, Reason.EQUAL if is_right else Reason.DIFFERENT, stated, expected, steps)


def _verdict(is_right: bool, reason: Reason, stated: Stated, expected: str, steps: tuple[Step, ...]) -> Verdict:
    text = (stated.text or "")[:MAX_ANSWER_CHARACTERS]
    answer = canonical_form(expected if is_right else text)
    return Verdict(answer or None, float(is_right), reason, stated.place, text, steps)
