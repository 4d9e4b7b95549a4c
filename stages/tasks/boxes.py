"""The place in a response that states its answer: the last `\\boxed{…}` after the thinking.

Responses are untrusted, so all functions read a text once, in linear time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Every alternative starts with a literal character, so that `re` skips plain text fast. The possessive `*+` and `++`
# prevent backtracking, which would take quadratic time on hostile text.
_TOKENS = re.compile(r"\\(?:\\{0,2}(?:boxed|fbox)(?:(?P<open>\s*+\{)|\s++(?P<word>[^\s${}\\]++))|.)|\{|\}", re.S)
_END_OF_THINKING = "</think>"
_CONTROL_TOKENS = re.compile(
    r"(?:\s*+(?:<\|[a-z_]{1,30}\|>(?:user|assistant|system)?+|</?s>|<end_of_turn>|<eos>))++\s*+$"
)
_MAX_CONTROL_CHARACTERS = 200
_BLANK = re.compile(
    r"(?:[\s.…_?~]|\\[ldc]?dots(?![A-Za-z])|\\[,;:! ])*"
    r"|(?:\\text\s*\{)?\s*[<\[]?(?:(?:your|the|final|correct)[ _])*(?:answer|result)(?:[ _]here)?[>\]]?\s*\}?",
    re.I,
)


class Box(NamedTuple):
    """A `\\boxed{…}`.

    Attributes:
      content: the text between its braces.
      start, end: half-open interval of the whole box in the text, in characters.
    """

    content: str
    start: int
    end: int


def after_thinking(text: str) -> str:
    """Return the text after the last `</think>`, else the whole text, without control tokens of a chat at its end."""
    text = text.rpartition(_END_OF_THINKING)[2]
    control = _CONTROL_TOKENS.search(text, max(len(text) - _MAX_CONTROL_CHARACTERS, 0))
    return text[: control.start()] if control else text


def is_blank(content: str) -> bool:
    r"""Return whether the content of a box is none, as where a response quotes its instruction: ``, `…`, `answer`."""
    return len(content) <= 60 and bool(_BLANK.fullmatch(content))


def find_boxes(text: str) -> tuple[list[Box], bool]:
    """Return the outermost boxes of a text in order, and whether the text ends inside a box after the last of them.

    `\\fbox{…}` and `\\boxed 7` count as boxes. Escaped braces (`\\{`) do not count as braces.
    """
    boxes: list[Box] = []
    opened: list[tuple[int, int] | None] = []  # per open brace: (start of the box, start of its content); None: no box
    for token in _TOKENS.finditer(text):
        if token["open"]:
            opened.append((token.start(), token.end()))
        elif token["word"]:
            boxes.append(Box(token["word"].rstrip(".,;:"), token.start(), token.end()))
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened and (box := opened.pop()):
            start, content = box
            while boxes and boxes[-1].start > start:  # boxes inside this one
                boxes.pop()
            boxes.append(Box(text[content : token.start()].strip(), start, token.end()))
    last_end = boxes[-1].end if boxes else 0
    return boxes, any(box and box[0] >= last_end for box in opened)


def last_box(text: str) -> str | None:
    """Return the content of the last box after the thinking that is not blank.

    Return None if there is none, or the text ends inside it.
    """
    boxes, truncated = find_boxes(after_thinking(text))
    filled = [box.content for box in boxes if not is_blank(box.content)]
    return filled[-1] if filled and not truncated else None
