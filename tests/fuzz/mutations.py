"""Mutate bytes and JSON-like values: what disks, transfers, editors and hostile authors do to files."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from random import Random
from typing import Any

HOSTILE: Sequence[Any] = (
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, math.inf, math.nan),
    *("", " ", "0", "-1", "nan", "true", "null", "none", "a" * 5000, "\x1b[2J\x1b]0;x\x07", "\u202egnp.exe", "\ud800"),
    *("../../etc/passwd", "/", "~", "-", "--out", "s3://key:secret@bucket/x", "line\nbreak", "%s%n", "{0}", "a=b"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": {"c": 1}}}, [1, "a"], ["a", "b"], "9" * 5000),
)
"""Values that stand in for any other."""


def mutate_bytes(random: Random, content: bytes, other: bytes = b"") -> bytes:
    """Return content with one to three kinds of damage.

    Args:
      other: a file of the same kind, parts of which may get into this one.
    """
    for _ in range(random.choice((1, 1, 2, 3))):
        content = random.choice(_DAMAGES)(random, content, other)
    return content


def _place(random: Random, content: bytes) -> int:
    """Return a place in a file; its start and its end, where the headers are, are likelier than the middle."""
    size = max(1, len(content))
    near = min(size, 1 + int(random.expovariate(1 / 300)))
    return random.choice((random.randrange(size), min(near, size - 1), size - near))


def _flip(random: Random, content: bytes, other: bytes) -> bytes:
    at = _place(random, content)
    return content[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in content[at : at + 1]) + content[at + 1 :]


def _replace(random: Random, content: bytes, other: bytes) -> bytes:
    at, size = _place(random, content), random.choice((1, 1, 2, 4, 8, 64))
    return content[:at] + random.randbytes(size) + content[at + size :]


def _zero(random: Random, content: bytes, other: bytes) -> bytes:
    at, size = _place(random, content), random.choice((1, 8, 512, 4096))
    return content[:at] + bytes(len(content[at : at + size])) + content[at + size :]


def _cut(random: Random, content: bytes, other: bytes) -> bytes:
    return content[: _place(random, content)]


def _cut_start(random: Random, content: bytes, other: bytes) -> bytes:
    return content[_place(random, content) :]


def _remove(random: Random, content: bytes, other: bytes) -> bytes:
    at = _place(random, content)
    return content[:at] + content[at + random.choice((1, 2, 16, 256)) :]


def _insert(random: Random, content: bytes, other: bytes) -> bytes:
    at = _place(random, content)
    return content[:at] + random.randbytes(random.choice((1, 2, 16))) + content[at:]


def _repeat(random: Random, content: bytes, other: bytes) -> bytes:
    at, size = _place(random, content), random.choice((1, 16, 256, len(content)))
    return content[:at] + content[at : at + size] * 2 + content[at + size :]


def _splice(random: Random, content: bytes, other: bytes) -> bytes:
    at, source = _place(random, content), _place(random, other)
    piece = other[source : source + random.choice((8, 128, 2048))]
    return content[:at] + piece + content[at + len(piece) :]


_DAMAGES = (_flip, _flip, _replace, _zero, _cut, _cut_start, _remove, _insert, _repeat, _splice)


def mutate_value(random: Random, value: Any) -> Any:
    """Return a copy of nested values with one to three entries changed, left out, added or misspelled."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 3))):
        holders = [holder for holder in _holders(value) if holder]
        if not holders:
            return hostile(random)
        _change_entry(random, random.choice(holders))
    return value


def hostile(random: Random) -> Any:
    """Return a value that no one expects, sometimes deep inside others."""
    value = copy.deepcopy(random.choice(HOSTILE))
    for _ in range(random.choice((0, 0, 0, 0, 1, 3, 60))):
        value = [value] if random.random() < 0.5 else {"x": value}
    return value


def _holders(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [value] if isinstance(value, dict | list) else []
    return found + [holder for one in inner for holder in _holders(one)]


def _change_entry(random: Random, holder: Any) -> None:
    key: Any = random.choice(list(holder)) if isinstance(holder, dict) else random.randrange(len(holder))
    kind = random.choice(("replace", "replace", "replace", "remove", "add", "rename"))
    if kind == "remove":
        del holder[key]
    elif isinstance(holder, list):
        holder[key] = hostile(random)
    elif kind == "rename":
        at = random.randrange(len(key) + 1)
        holder[key[:at] + random.choice(("", "x", "-", ".", "\u00e9", "\x1b")) + key[at + 1 :]] = holder.pop(key)
    elif kind == "add":
        holder[random.choice(("x", "", key.upper(), f"{key}s", "__class__", "spo"))] = hostile(random)
    else:
        holder[key] = hostile(random)
