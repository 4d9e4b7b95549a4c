"""Verdicts on mathematical answers: which notations are equal, golden cases, real data, and hostile text."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tasks import maths_grader
from stages.tasks.maths_grader import verify, verify_all
from stages.tasks.sandbox import SandboxedFunction
from tests.pace import within

SAME = {
    "fractions": [(r"\frac{\sqrt{3}}{2}", r"\dfrac{\sqrt3}2"), ("0.5", r"\frac12"), ("14/3", r"\tfrac{14}{3}")],
    "mixed numbers": [("3 1/2", "7/2"), (r"3\frac{1}{2}", "3.5"), (r"-3\ \frac12", "-3.5"), ("4 2/3", r"\frac{14}{3}")],
    "decimals": [
        ("42.0", "42"),
        (".25", "1/4"),
        ("0.3333333333", "1/3"),
        (r"0.\overline{3}", "1/3"),
        (r"0.\bar3", "1/3"),
        ("007", "7"),
    ],
    "plain text": [
        ("sqrt(2)/2", r"\frac{\sqrt2}{2}"),
        ("2pi", r"2\pi"),
        ("pi/6", r"\frac\pi6"),
        ("x**2 + 1", "x^2+1"),
        ("2^-1", r"\frac12"),
        ("√(2)", r"\sqrt2"),
        ("ln(2)", r"\ln 2"),
    ],
    "layout": [
        (r"{\bf 42}", "42"),
        (r"\textcolor{blue}{42}", "42"),
        (r"\underline{42}", "42"),
        (r"\textstyle\frac12", "0.5"),
        ("42\\ ", "42"),
        (r"2+3\mathrm{i}", "2+3i"),
        (r"7^\text{th}", "7"),
        (r"\langle 2,-3 \rangle", "(2,-3)"),
    ],
    "thousands": [("1,234", "1234"), ("1{,}234", "1234"), (r"1,\!234", "1234"), (r"1\,234\,567", "1234567")],
    "powers of ten": [(r"7.8\times 10^2", "780"), ("3e8", r"3\times10^{8}"), (r"4.2 \cdot 10^{-1}", "0.42")],
    "currency": [(r"\$18.90", "18.9"), ("18.90 dollars", r"\$18.90"), (r"\$1{,}000", "1000"), ("£5", "5")],
    "units": [
        (r"12\text{ cm}", "12"),
        ("12 cm", r"12\text{ cm}"),
        (r"15\mbox{ cm}^2", "15"),
        (r"2\sqrt{3} \text{ square inches}", r"2\sqrt3"),
        ("100 square units", "100"),
        (r"5\frac{\text{m}}{\text{s}}", "5"),
        ("12 m", "12"),
        ("5cm", "5"),
        ("6 miles/s", "6"),
    ],
    "angles": [
        (r"90^{\circ}", "90"),
        ("90°", r"90^\circ"),
        ("90 degrees", r"90^\circ"),
        (r"2\pi\text{ radians}", r"2\pi"),
    ],
    "percent": [(r"20\%", "20"), ("20 percent", r"20\%"), ("0.2", r"20\%")],
    "punctuation": [("42.", "42"), ("$42$", "42"), (r"\(42\)", "42"), ("**42**", "42"), ("`42`", "42"), ("−42", "-42")],
    "names": [("x=3", "3"), ("3", "x = 3"), ("f(x)=3x", "3x"), ("(x,y)=(1,2)", "(1,2)"), (r"x\in[0,1]", "[0,1]")],
    "equations": [("y = 3 + 2x", "y=2x+3"), ("2x-y+3=0", "y=2x+3")],
    "inequalities": [("3<x", "x>3"), (r"x \le 3", r"(-\infty,3]"), ("[3,\\infty)", r"x \ge 3"), ("1<x<2", "(1,2)")],
    "chains": [("c > b > a", "a<b<c"), (r"3 \ge x > 1", "(1,3]")],
    "alternatives": [
        (r"x<-4 \text{ or } x \ge 6", r"(-\infty,-4) \cup [6,\infty)"),
        (r"1 < t \le 2, t > 5", r"(1,2] \cup (5,\infty)"),
    ],
    "points": [("x=2, y=-3, z=5", "(2,-3,5)"), (r"y=3\text{ and }x=2", "(2,3)")],
    "enclosed": [(r"\textbf{(073)}", "73"), (r"\text{5 hours}", "5"), (r"\{2,2,5\}", r"\{2,5\}")],
    "intervals": [(r"(2,\infty)\cup(-\infty,2)", r"(-\infty,2) \cup (2,\infty)"), (r"\left[2,5\right)", "[2,5)")],
    "lists": [("3, 1, 2", "1,2,3"), (r"\{1,2\}", "2,1"), (r"1 \text{ or } -2", "1,-2"), ("x=1, x=-2", "-2,1")],
    "plus or minus": [
        (r"\pm 3", "3,-3"),
        (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
        (r"\{1\pm\sqrt5, -2\}", r"-2, 1-\sqrt5, 1+\sqrt5"),
    ],
    "tuples": [("(3,\\,4)", "(3,4)"), ("(1,4.5)", r"\left(1,\frac{9}{2}\right)")],
    "matrices": [(r"\begin{bmatrix}1/2\\3\end{bmatrix}", r"\begin{pmatrix} \frac12 \\ 3 \end{pmatrix}")],
    "words": [
        ("friday", r"\text{Friday}"),
        (r"\textbf{Friday}", "Friday"),
        ("an ellipse", r"\text{ellipse}"),
        ("C", r"\text{(C)}"),
    ],
    "ratios and times": [("3 : 4", "3:4"), (r"2\!:\!30", "2:30"), ("8:34 p.m.", r"8\!:\!34 \text{ PM}")],
    "bases": [("2516_{8}", "2516_8"), ("2516", "2516_8"), (r"101_{\text{two}}", "101_2"), ("(204)_5", "204_5")],
    "near decimals": [("8.2360679775", r"6+\sqrt{5}"), ("7068.58347058", r"2250\pi"), ("0.6666666666", "2/3")],
    "radicals": [(r"\sqrt{20}", r"2\sqrt5"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"), (r"2^{1/2}", "√2")],
    "polynomials": [("(x-2)(x+2)", "x^2-4"), ("-q+p", "p - q"), (r"\frac{x}{2}", "0.5x")],
    "functions": [
        (r"\cot x", r"\frac{\cos x}{\sin x}"),
        (r"\binom{5}{2}", "10"),
        ("10!", "3628800"),
        (r"\log_2 8", "3"),
    ],
    "complex numbers": [
        ("2 i + 1", "1+2i"),
        (r"2\left(7 i + 1\right)", "2+14i"),
        ("3i,-3i", r"\pm 3 i"),
        ("(1+i)^2", "2i"),
        (r"\frac{1}{1+i}", r"\frac{1-i}{2}"),
        (r"e^{i\pi/3}", r"\frac{1}{2} + \frac{\sqrt{3}}{2}i"),
        (r"\begin{pmatrix} i^2 \\ 0 \end{pmatrix}", r"\begin{pmatrix} -1 \\ 0 \end{pmatrix}"),
        (r"\frac{-1 \pm i\sqrt3}{2}", r"-\frac12+\frac{\sqrt3}{2}i, -\frac12-\frac{\sqrt3}{2}i"),
    ],
    "towers": [(r"9^{9^{9^9}}", r"9^{9^{9^{9}}}")],
}
DIFFERENT = [
    ("", "1/2"),
    ("5", "6"),
    ("3", "-3"),
    ("0.333333", "1/3"),
    ("5.1", "5"),
    ("1000", r"10\%"),
    (r"2 \times 10^{-10}", r"3 \times 10^{-10}"),
    (r"2.0 \times 10^{-10}", r"3.0 \times 10^{-10}"),
    ("x=3", "y=3"),
    ("x > 3", r"x \ge 3"),
    ("5x", "5"),
    ("2t", "2"),
    ("5xy", "5"),
    ("5 ab", "5"),
    ("5m", "5"),
    ("m g", "m"),
    ("3 squared", "3"),
    ("10 am", "10 pm"),
    (r"2:30\text{ AM}", r"2:30\text{ PM}"),
    ("x=3, y=2", "(2,3)"),
    ("x=2, x=3", "(2,3)"),
    (r"x<-4 \text{ or } x>6", r"(-\infty,-4) \cup [6,\infty)"),
    ("c > a > b", "a<b<c"),
    ("(A)(B)(C)", r"\text{(A)}"),
    ("x^2+1", "x^2-1"),
    ("12x - 4y - 169 = 0", "0"),
    ("(2,1)", "(1,2)"),
    ("[1,2]", "(1,2)"),
    ("1,2", "1,2,3"),
    ("3,4", "(3,4)"),
    ("(2,3),(5,8)", "(5,7),(2,3)"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    ("Monday", r"\text{Friday}"),
    ("(B)", r"\text{(C)}"),
    ("ABCD", r"\text{CBAD}"),
    (r"\text{None}", "4"),
    ("4:3", "3:4"),
    ("2517_8", "2516_8"),
    ("101_3", "101_2"),
    (r"9^{9^{9^9}}", "42"),
    ("10^{10}", "10^{10^{10^{10}}}"),
    ("1e400", "42"),
    ("6+5i", "6-5i"),
    (r"1-5051/2^{103}", r"1-5051/2^{100}"),
    (r"\frac{1}{2009!}", r"\frac{1}{2004!}"),
    ("4x^2 + 8x + 14 = 0", "4x^2 + 8x + 19 = 0"),
    (r"\log(0.01) = -4", r"\log(0.01) = -2"),
    (r"d=5, M=\left(-5,\frac{7}{2}\right)", r"d=5, M=\left(-1,\frac{7}{2}\right)"),
    (r"\{1 \pm \sqrt5, 2\}", r"\{1 \pm \sqrt5, -2\}"),
    (r"\sin 30", r"\sin 30^\circ"),
    (r"1\sqrt{19}", "1"),
]


ALGEBRA = "stages.tasks.maths_algebra:compare_by_algebra"


@pytest.fixture(autouse=True, scope="module")
def processes() -> Iterator[None]:
    """Grade with limits that no valid answer exceeds on a slow and busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patient = SandboxedFunction(ALGEBRA, processor_seconds=60, clock_seconds=600)
        patch.setattr(maths_grader, "_compare_by_algebra", patient)
        yield
        maths_grader.close()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Grade with the limits that the grader has by default."""
    compare = SandboxedFunction(ALGEBRA)
    monkeypatch.setattr(maths_grader, "_compare_by_algebra", compare)
    yield
    compare.close()


def boxed(answer: str) -> str:
    return rf"Some reasoning. The answer is $\boxed{{{answer}}}$."


@pytest.mark.parametrize("kind", SAME)
def test_equal_answers_in_different_notation_are_right(kind: str):
    for answer, reference in SAME[kind]:
        assert verify(boxed(answer), reference).reward == 1.0, (answer, reference)
        assert verify(boxed(reference), answer).reward == 1.0, (reference, answer)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("2+2=4", "4"), ("x^2+y^2=25", "25"), (r"2:30\text{ p.m.}", "2:30"), (r"\textbf{(C) }12", r"\text{(C)}")],
)
def test_an_answer_may_state_more_than_the_reference(answer: str, reference: str):
    assert verify(boxed(answer), reference).reward == 1.0


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_different_answers_are_wrong(answer: str, reference: str):
    assert verify(boxed(answer), reference).reward == 0.0


@pytest.mark.parametrize(
    ("response", "reference", "reward"),
    [
        (r"First \boxed{1}, later \boxed{2}", "2", 1.0),
        (r"First \boxed{1}, later \boxed{2}", "1", 0.0),
        (r"<think>\boxed{1}</think> It is \boxed{2}.", "1", 0.0),
        (r"<think>\boxed{1}</think> It is 2.", "2", 1.0),
        (r"$x = \boxed{1}$ or $x = \boxed{2}$", "1,2", 1.0),
        (r"$\boxed{1}$ and $\boxed{2}$", "2", 1.0),
        (r"\boxed{255}. Final Answer: The final answer is $10,455$. I hope it is correct.", "10455", 1.0),
        (r"\boxed{80}. The final answer is positive, as it should be.", "80", 1.0),
        ("The answer is 4.", "4", 1.0),
        ("The answer is (1,2).", "(1,2)", 1.0),
        ("So the answer is **(C)**.", r"\text{(C)}", 1.0),
        ("The answer is Friday.", r"\text{Friday}", 1.0),
        ("The answer is Friday or Monday.", r"\text{Friday}", 0.0),
        ("# Answer\n\n4", "4", 1.0),
        ("Therefore $x = 4$.", "4", 1.0),
        ("-15", "-15", 1.0),
        (r"The answer is \boxed{4", "4", 0.0),
        ("I do not know.", "4", 0.0),
        ("", "4", 0.0),
    ],
)
def test_the_last_stated_answer_counts(response: str, reference: str, reward: float):
    assert verify(response, reference).reward == reward


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"We find $x = \boxed{7}$, or $\boxed{9}$ if it is late. So $\boxed{5}$.", "5"),
        (r"\(\boxed{1}\) and \(\boxed{-2}\)", "-2,1"),
        (r"$\frac{1}{2}$", "0.5"),
        (r"$$\\left(\\frac{1}{5},2\\right)$$", "(0.2,2)"),
        ("$69$,$84$", "84, 69"),
    ],
)
def test_a_reference_may_be_a_worked_solution_or_between_dollar_signs(reference: str, answer: str):
    assert verify(boxed(answer), reference).reward == 1.0


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        (r"\dfrac{1}{2}", "0.5"),
        ("1,234.50", "1234.5"),
        (r"\frac{2}{6}", "1/3"),
        (r"20 \%", "20%"),
        (r" x^{2} + 1 ", "x^2+1"),
        (r"2 \pi r", r"2\pi r"),
        (r"\text{  two lines }", "two lines"),
        ("1e400", "1e400"),
    ],
)
def test_answers_are_stored_in_canonical_form(answer: str, stored: str):
    assert verify(boxed(answer), r"\text{something else}").answer == stored


def test_right_answers_are_equal_strings():
    answers = {verify(boxed(answer), r"\frac{\sqrt{2}}{2}").answer for answer in (r"\frac{1}{\sqrt2}", r"\sqrt{1/2}")}
    assert answers == {r"\frac{\sqrt2}2"}


def test_a_verdict_is_cached(monkeypatch: pytest.MonkeyPatch):
    first = verify(boxed(r"\sin^2 x"), r"1-\cos^2 x")
    monkeypatch.setattr(maths_grader, "_compare_by_algebra", SandboxedFunction("nowhere:nothing"))
    assert verify(boxed(r"\sin^2 x"), r"1-\cos^2 x") == first


@pytest.mark.usefixtures("limits")
def test_an_answer_that_hangs_is_ungradable_and_affects_no_other():
    responses = [boxed(r"\sin^2 x"), boxed(r"\sum_{i=1}^{10^{12}} i^i"), boxed(r"\tan x")]
    assert [verdict.reward for verdict in verify_all(responses, [r"1-\cos^2 x"] * 3)] == [1.0, None, 0.0]


ON_A_BUSY_MACHINE = [
    (r"\sin^2 x", r"1-\cos^2 x", 1.0),
    (r"\log_2 8", "3", 1.0),
    (r"\log_2 8", "4", 0.0),
    (r"\binom{5}{2}", "10", 1.0),
    (r"F_n = \sum_{k=0}^{n-1} F_{n-k-1} F_k", r"F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1}", 1.0),
    (r"\frac{1}{1+i}", r"\frac{1-i}{2}", 1.0),
    (r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 0.0),
]


@pytest.mark.usefixtures("limits")
def test_verdicts_on_a_busy_machine_are_the_same(monkeypatch: pytest.MonkeyPatch):
    """Sixteen processes take every processor while the default limits apply."""
    monkeypatch.setattr(maths_grader, "_verdicts", {})
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(16)]
    try:
        responses, references = [boxed(case[0]) for case in ON_A_BUSY_MACHINE], [case[1] for case in ON_A_BUSY_MACHINE]
        verdicts = verify_all(responses, references)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert [verdict.reward for verdict in verdicts] == [case[2] for case in ON_A_BUSY_MACHINE]


def test_golden_cases_are_graded_as_expected(shared: Path):
    """The grader is right on 99 % of the cases that depend on no convention (`policy`), on 90 % of the hard ones, and
    on every case that plain math-verify gets right."""
    cases = [json.loads(line) for line in (shared / "golden" / "grader_cases.jsonl").read_text().splitlines()]
    cases = [case for case in cases if case["kind"] == "math"]
    verdicts = verify_all([case["prediction_text"] for case in cases], [case["gold_answer"] for case in cases])
    right = [verdict.reward == float(case["expected_correct"]) for verdict, case in zip(verdicts, cases, strict=True)]
    graded = list(zip(cases, right, strict=True))
    plain = [ok for case, ok in graded if case["policy"] is None]
    hard = [ok for case, ok in graded if case["category"].endswith("_hard")]
    lost = [case["id"] for case, ok in graded if case["math_verify_verdict"] == case["expected_correct"] and not ok]
    assert len(plain) > 250
    assert sum(plain) >= 0.99 * len(plain)
    assert sum(hard) >= 0.9 * len(hard)
    assert not lost


def test_every_gold_solution_of_math_is_right_against_its_answer(shared: Path):
    """12,498 of 12,500 are right; the other two have an empty box."""
    rows = [
        row
        for name in ("math12k/train", "math500/test")
        for row in pq.read_table(shared / "data" / f"{name}.parquet").to_pylist()
    ]
    verdicts = verify_all([row["solution"] for row in rows], [row["answer"] for row in rows])
    wrong = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict.reward != 1.0]
    assert len(rows) == 12_500
    assert [row["unique_id"] for row in wrong] == ["train/number_theory/7115.json", "train/number_theory/7117.json"]
    assert all(row["answer"] == "" for row in wrong)


def test_gold_answers_of_other_questions_are_wrong(shared: Path):
    """MATH-500 with its gold answers shuffled: pairs that are graded right are the same answer, up to the unit."""
    rows = pq.read_table(shared / "data" / "math500" / "test.parquet").to_pylist()
    swapped = [row["answer"] for row in rows]
    random.Random(0).shuffle(swapped)
    verdicts = verify_all([row["solution"] for row in rows], swapped)
    same = {(row["answer"], other) for row, other, v in zip(rows, swapped, verdicts, strict=True) if v.reward != 0.0}
    assert all(without_unit(mine) == without_unit(other) for mine, other in same)


def without_unit(answer: str) -> str:
    return answer.split(r"\text")[0].split(r"\mbox")[0].removesuffix(r"^\circ").removesuffix(r"\%").strip(" $\\")


def hostile() -> list[str]:
    """Return 200 responses that could hang or crash a grader, or exhaust its memory."""
    numbers = random.Random(0)
    expressions = [
        *("9^{9^{9^{9}}}", "(10^{10})!", "((100!)!)!", r"\binom{10^9}{5\cdot10^8}", r"\sum_{i=1}^{10^{12}} i^i"),
        *(r"\prod_{k=1}^{10^9} k", r"\int_0^\infty \sin(x^x) dx", "(x+y+z+w)^{500}", "(x+1)^{10000}", "1e999999999"),
        *(r"\sqrt{" * 30 + "2" + "}" * 30, r"\frac{1}{" * 60 + "2" + "}" * 60, "x^{" * 100 + "2" + "}" * 100),
        *("(" * 500 + "1" + ")" * 500, "{" * 900 + "1" + "}" * 900, "[" * 300, "1" + "+1" * 900, "9" * 1999),
        *("1/" * 900 + "1", "-" * 1900 + "1", "x=y=" * 400 + "1", "1<" * 600 + "2", r"\pm1" * 300, r"\%" * 900),
        *(r"\begin{pmatrix}" + "1&" * 900, r"\{" + ",".join(map(str, range(400))) + r"\}", r"\cos^{10^6}(x)"),
        *("x" * 1_000_000, "(" * 1_000_000, r"\{" * 100_000, "\x00", "\ud800", "\U0010ffff" * 500, "٣", "\u202e5"),
        *("__import__('os').abort()", "exec('x')", "9**9**9**9", "x.__class__", "$" * 500, "\n\n"),
    ]
    texts = [
        *(r"\boxed{" * 100_000, "}" * 500_000, "a" * 2_000_000, "$" * 500_000, "\\" * 500_000, " " * 500_000 + "5"),
        *("5 " * 300_000, "$x$, " * 100_000, "answer is " * 50_000, "final answer is $" * 50_000, "</think>" * 50_000),
        *("1,000" * 100_000, "." * 100_000, "-" * 100_000, r"\frac{1}{" * 30_000, r"\[ " * 50_000, "[ x ] " * 50_000),
        *(
            "the answer is 9^9^9^9",
            "answer: " + "(" * 900,
            "The answer is " + "9*" * 500 + "9",
            "\x00" * 10_000,
            "\udfff",
        ),
    ]
    fragments = (
        r"\frac { } ( ) ^ _ \sqrt x 1 9 + - \boxed{ $ \left \right \begin{pmatrix} & \\ \text{ , = < ! % \cup \int"
    )
    while len(expressions) + len(texts) < 200:
        text = "".join(numbers.choices(fragments.split(), k=numbers.randrange(5, 300)))
        (expressions if numbers.random() < 0.5 else texts).append(text)
    return [*map(boxed, expressions), *texts]


@pytest.mark.slow
@pytest.mark.usefixtures("limits")
def test_hostile_text_neither_hangs_nor_is_right():
    """Graded one at a time: the sandbox limits the comparison, and this process only reads the text."""
    references = ("42", r"\frac{1}{2}", "x^2+1", "(1,2)", r"\text{Friday}", r"1-\cos^2 x")
    responses = hostile()
    assert len(responses) == 200
    for i, response in enumerate(responses):
        with within(5):
            verdict = verify(response, references[i % len(references)])
        assert verdict.reward in (0.0, None), response[:80]


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40), st.text(max_size=20))
def test_any_text_gets_a_verdict(response: str, reference: str):
    assert verify(response, reference).reward in (0.0, 1.0, None)
