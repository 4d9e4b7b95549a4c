"""Measure how fast mathematics is graded: `python -m tests.bench.bench_grading [saved responses]`.

First 10,000 responses to 10,000 questions, so that no verdict is cached; then 100,000 saved responses, 100 to each of
1,000 questions, as `spo eval --regrade` reads them. The peer is plain math-verify, one response after the other in one
process, on 1,000 of the same. A response has a few hundred words with the answer in a box (one in twenty has no box).
Half are correct, and one in six of these has another form than the reference. Prints responses per second.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from random import Random

from stages.tasks import maths_grader

SAMPLES = 100
PLAIN = 1_000

Kind = Callable[[Random], tuple[str, str]]
"""A function that draws a reference and an equal answer in another form."""


def integer(random: Random) -> tuple[str, str]:
    number = random.randrange(-200, 5_000)
    return str(number), f"{number:,}.0"


def fraction(random: Random) -> tuple[str, str]:
    above, below = random.randrange(1, 100), random.randrange(2, 100)
    return rf"\frac{{{above}}}{{{below}}}", f"{above}/{below}"


def root(random: Random) -> tuple[str, str]:
    factor, inside = random.randrange(2, 20), random.choice((2, 3, 5, 7, 11, 13))
    return rf"{factor}\sqrt{{{inside}}}", rf"\sqrt{{{factor * factor * inside}}}"


def point(random: Random) -> tuple[str, str]:
    x, y = random.randrange(-9, 10), random.randrange(1, 30)
    return rf"\left({x}, \frac{{{y}}}{{4}}\right)", f"({x}, {y / 4})"


def interval(random: Random) -> tuple[str, str]:
    start = random.randrange(-30, 30)
    return rf"({start},\infty)", f"x > {start}"


def polynomial(random: Random) -> tuple[str, str]:
    a, b = random.randrange(1, 30), random.randrange(1, 30)
    return f"x^2 + {a + b}x + {a * b}", f"(x + {a})(x + {b})"


def word(random: Random) -> tuple[str, str]:
    name = random.choice(("Evelyn", "even", "Friday", "ellipse", "neither"))
    return rf"\text{{{name}}}", name.lower()


KINDS: list[tuple[int, Kind]] = [  # weights in percent, roughly as in MATH
    (70, integer),
    (12, fraction),
    (7, root),
    (4, point),
    (2, interval),
    (4, polynomial),
    (1, word),
]


def responses(questions: int, samples: int, random: Random) -> tuple[list[str], list[str]]:
    """Return responses to questions, and the reference of each."""
    weights, kinds = zip(*KINDS, strict=True)
    texts, references = [], []
    for _ in range(questions):
        (kind,) = random.choices(kinds, weights)
        reference, other = kind(random)
        for _ in range(samples):
            draw = random.random()
            answer = reference if draw < 5 / 12 else other if draw < 1 / 2 else kind(random)[0]
            reasoning = f"We see that ${random.randrange(99)} + x = {random.randrange(99)}$ holds, and go on.\n\n" * 20
            box = rf"\boxed{{{answer}}}" if random.random() < 0.95 else answer
            texts.append(f"{reasoning}The answer is ${box}$.")
            references.append(reference)
    return texts, references


def plain_rate(texts: list[str], references: list[str]) -> float:
    """Return responses per second of math-verify, called as its documentation shows."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    started = time.perf_counter()
    for text, reference in zip(texts, references, strict=True):
        verify(parse(rf"\boxed{{{reference}}}"), parse(text))
    return len(texts) / (time.perf_counter() - started)


def measure(questions: int, samples: int) -> tuple[float, list[str], list[str]]:
    """Return responses per second, and the responses with their references; print the rate."""
    texts, references = responses(questions, samples, Random(questions))
    started = time.perf_counter()
    verdicts = maths_grader.verify_all(texts, references)
    seconds = time.perf_counter() - started
    correct = sum(verdict.reward == 1 for verdict in verdicts)
    ungradable = sum(verdict.reward is None for verdict in verdicts)
    rate = len(texts) / seconds
    print(
        f"  {len(texts):>7,} responses to {questions:>6,} questions: {seconds:6.1f} s  {rate:>9,.0f} per second"
        f"  ({correct / len(texts):.0%} correct, {ungradable} ungradable)"
    )
    return rate, texts, references


def main(saved: int = 100_000) -> float:
    """Print the table; return the rate of regrading saved responses divided by the rate of plain math-verify."""
    started = time.perf_counter()
    maths_grader.verify(r"\boxed{\sin x}", "y")
    print(f"{len(os.sched_getaffinity(0))} processors; first verdict after {time.perf_counter() - started:.1f} s")
    fresh, texts, references = measure(10_000, 1)
    again, _, _ = measure(saved // SAMPLES, SAMPLES)
    plain = plain_rate(texts[:PLAIN], references[:PLAIN])
    print(f"  plain math-verify in one process: {plain:,.0f} per second")
    print(f"  ratios: {fresh / plain:.1f} (every response new), {again / plain:.1f} (saved responses)")
    return again / plain


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
