r"""Read what a text announces as its answer: after "the answer is" in many languages, or after `####`.

    find_announced("So the answer is $4$, since 2 + 2 = 4.").text     # "4"
    value_in_sentence("The largest n is 34")                         # "34"

A statement ends with its sentence or where a remark begins. Responses are untrusted: all functions look at a bounded
part of a text, or read it once in linear time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from stages.tasks.boxes import is_blank
from stages.tasks.number_words import MULTIPLIERS
from stages.tasks.verdicts import Place, Reason, Step

MAX_ANSWER_CHARACTERS = 2_000
"""A longer answer is wrong without being read: every reference is far shorter."""
TAIL_CHARACTERS = 2_000
"""Without a box or an announcement, the answer is searched for in this much of the end of a response."""
_STATEMENT_CHARACTERS = 400
"""The longest statement after "the answer is"."""
ANSWER_MARK = "####"
"""GSM8K's solutions end with this mark and the answer."""
FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\(((?:[^\\]|\\[^)])+?)\\\)|\\\[((?:[^\\]|\\[^\]])+?)\\\]")

_BECOMES = r"(?:is|are)(?:\s+(?:therefore|thus|then|hence|simply|just|indeed|clearly|now|also|equal\s+to))?\b"
_ENGLISH = (
    r"\b(?P<noun>answer|option|choice)\b(?:\s+(?:to|for|of)\s[^.\n$]{1,60}?)?"
    rf"(?:\s+{_BECOMES}\s*:?|\s*[:=]|\s*\*+\s*:?|\s*\n|\s+(?=\$|\\\(|\\\[))"
)
_OTHER_NOUNS = (
    "答案|答え|正解|정답|답|réponse|antwort|lösung|respuesta|resposta|risposta|ответ|odpowiedź|antwoord|cevap|jawaban"
    "|đáp án|उत्तर|الجواب|الإجابة"
)
_OTHER_COPULAS = r"是|为|為|は|은|는|है|هو|هي|\b(?:est|ist|lautet|es|é|è|to|is|adalah|là)\b"
_OTHER_LANGUAGES = (
    rf"(?:{_OTHER_NOUNS})(?:\s+(?:finale?|correcte|correct[ao]|correta|corretta|final|exacte))?"
    rf"(?:(?:\s*\*+)?\s*[:：=]|\s*(?:{_OTHER_COPULAS})(?:\s+(?:donc|also|entonces|então|quindi)\b)?\s*[:：]?)"
)
_ANNOUNCEMENT = re.compile(f"{_ENGLISH}|{_OTHER_LANGUAGES}", re.I)
_FINAL_ANSWER = re.compile(r"final answer is:?\s*+(?=\$|\\[(\[]|[-+]?[0-9])", re.I)
_REMARK = re.compile(
    r"(?:also\s+)?(?:correct|right|reasonable|valid|consistent|plausible|verified|positive|as follows)\b", re.I
)
"""What follows "the answer is" in a remark about an answer that was stated before."""
_REMARK_IN_PARENTHESES = r"\s\((?:as|which|since|because|see|from|after|rounded|not|i\.e\.|assuming)\b"
_STATEMENT_END = re.compile(
    r"[.!?](?=[\s*\"”)]|$)|[。！？।]|，(?![\s0-9$\\(])|\n|,?\s(?:since|because|which|as|so|but|I hope)\b"
    r"|,\s(?:and\s)?(?:not|it|this|that|these|we|he|she|they|I|there|rather|instead)\b"
    rf"|{_REMARK_IN_PARENTHESES}"
)
"""The end of a sentence, or the start of a remark: "5, since …", "5, not 6", "5 (as shown above)"."""
_FILLER = re.compile(r"(?:for sure|of course|definitely|clearly|obviously|surely)[\s,:]+", re.I)
_BEGINS_WITH_WORD = re.compile(r"\s*(?:[A-Za-z]{2,}|[AI])[\s,]")
_LAST_COPULA = re.compile(r".*\b(?:is|are|was|were|equals?|becomes?)\s*:?\s+(?P<value>\S.*)", re.S)
_DENIAL = re.compile(
    r"\b(?:not|never|no|if|either|neither|cannot|unknown|wrong|incorrect|impossible|false"
    r"|nicht|keine?|pas|non|não|niet|nie|не)\b|n't\b|不",
    re.I,
)
_HEDGE = re.compile(r"\b(?:maybe|perhaps|possibly|might|may|could|would)\b", re.I)
_RELATIVE_CLAUSE = re.compile(r"\s(?:that|who|whose|(?:for|in|of) which|satisfying)\b")
_BOUND = re.compile(r"\b(?:less|more|fewer|greater|smaller|larger|than|least|most|between|over|under)\b", re.I)
_NUMBER = re.compile(r"[-−]?\$?(?:[0-9]|\.(?=[0-9]))[0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?")
_CHANGES_VALUE = re.compile(
    rf"\b(?:{'|'.join(MULTIPLIERS)}|or|and|half|twice|times|x|plus|minus|per)\b|[\\*+=/^×÷]|[0-9]\s*[-–]\s*[0-9]",
    re.I,
)


class Stated(NamedTuple):
    """The answer that a response states.

    Attributes:
      text: the statement; None if there is none.
      place: where it is.
      reason: `EQUAL` if nothing rules the answer out, else why it cannot count.
      steps: how it was found.
    """

    text: str | None
    place: Place
    reason: Reason = Reason.EQUAL
    steps: tuple[Step, ...] = ()


def find_announced(text: str) -> Stated | None:
    """Return what the last "the answer is" or "the correct option is" announces; None without an announcement."""
    text = text[-20 * TAIL_CHARACTERS :]
    for match in reversed(list(_ANNOUNCEMENT.finditer(text))):
        said = statement_at(text, match.end())
        if said and not _REMARK.match(said) and not is_blank(said):
            is_choice = (match["noun"] or "answer").lower() != "answer"
            return Stated(said, Place.OPTION if is_choice else Place.ANNOUNCED)
    return None


def find_final_answer(text: str, start: int) -> str:
    """Return what the last "the final answer is $…$" after a position states; empty if there is none."""
    last = None
    for match in _FINAL_ANSWER.finditer(text, start):
        last = match
    return statement_at(text, last.end()) if last else ""


def find_marked(text: str) -> Stated | None:
    """Return the line after the last `####`; None without a mark or if the line is empty."""
    _, mark, tail = text.rpartition(ANSWER_MARK)
    line = tail[:_STATEMENT_CHARACTERS].partition("\n")[0].strip(" \t:*")
    line = re.split(_REMARK_IN_PARENTHESES, line, maxsplit=1)[0]
    return Stated(without_delimiters(line), Place.MARK) if mark and line else None


def statement_at(text: str, start: int) -> str:
    """Return the statement that starts at a position: up to the end of the sentence or line, without delimiters."""
    rest = text[start : start + _STATEMENT_CHARACTERS].lstrip(' \t\n:：*"“')
    rest = _FILLER.sub("", rest, count=1) if _FILLER.match(rest) else rest
    pieces, position = [], 0
    while position < len(rest):
        formula = FORMULA.search(rest, position)
        end = _STATEMENT_END.search(rest, position)
        if formula and (not end or formula.start() < end.start()):
            pieces.append(rest[position : formula.start()])
            pieces.append(formula_content(formula))
            position = formula.end()
            continue
        pieces.append(rest[position : end.start() if end else len(rest)])
        break
    return without_delimiters("".join(pieces))


def value_in_sentence(text: str) -> str | None:
    """Return the value that a sentence states: `The largest n is 34` → `34`, `that she has 18 eggs` → `18`.

    It is what follows the last "is", "are" or "equals", or else the only number. Return None if the text does not begin
    with a word, denies or hedges ("not", "either", "if"), or only bounds the value ("less than").
    """
    if len(text) > _STATEMENT_CHARACTERS or not _BEGINS_WITH_WORD.match(text) or _DENIAL.search(text):
        return None
    if said := _LAST_COPULA.fullmatch(text):
        value = _RELATIVE_CLAUSE.split(said["value"])[0]
        return None if _BOUND.search(value) or _HEDGE.search(value) else value
    numbers = _NUMBER.findall(text)
    is_changed = _BOUND.search(text) or _HEDGE.search(text) or _CHANGES_VALUE.search(text)
    return None if len(numbers) != 1 or is_changed else numbers[0]


def formula_content(formula: re.Match[str]) -> str:
    """Return what stands between the delimiters of a match of `FORMULA`."""
    return next(group for group in formula.groups() if group is not None).strip()


def without_delimiters(text: str) -> str:
    """Return a statement without emphasis, quotes, and the delimiters of one formula around it."""
    text = text.strip().strip('*"“” \t')
    formula = FORMULA.fullmatch(text.rstrip(".,"))
    return formula_content(formula) if formula else text.replace("**", "").strip()
