"""Tables of results for the terminal, in Markdown and in LaTeX."""

from __future__ import annotations

import json
import math
from io import StringIO

import pytest
from rich.console import Console

from spo_cli.tables import Mean, Probability, Table, latex, markdown, plain, rich_table, show

TABLE = Table(
    "Accuracy in %",
    ["task", "max tokens", "avg@4", "p"],
    [
        ["math_500 & more", 2048, Mean.percent(0.4567, 0.0123), Probability(0.04)],
        ["a|b", None, Mean.percent(1.0, math.nan), Probability(1e-7)],
    ],
)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Mean(12.34, 0.56), "12.3 ± 0.6"),
        (Mean.percent(0.973, 0.005), "97.3 ± 0.5"),
        (Mean.percent(-0.0375, 0.042), "-3.8 ± 4.2"),
        (Mean.percent(-0.0001, 0.026), "0.0 ± 2.6"),
        (Mean.percent(0.5, math.nan), "50.0"),
        (Mean(0.0, 0.0, 100.0, (0.0, 0.0741)), "0.0 (0.0 to 7.4)"),
        (Probability(0.5625), "0.5625"),
        (Probability(0.00009), "< 0.0001"),
        (12345, "12,345"),
        ("gsm8k", "gsm8k"),
        (None, ""),
    ],
)
def test_a_cell_as_text(cell, text):
    assert show(cell) == text


def test_markdown():
    assert markdown(TABLE).splitlines() == [
        "**Accuracy in %**",
        "",
        "| task | max tokens | avg@4 | p |",
        "| :--- | ---: | ---: | ---: |",
        "| math_500 & more | 2,048 | 45.7 ± 1.2 | 0.0400 |",
        "| a\\|b |  | 100.0 | < 0.0001 |",
    ]


def test_latex_has_booktabs_rules_and_escapes_special_characters():
    assert latex(TABLE).splitlines() == [
        "% Accuracy in %; needs \\usepackage{booktabs}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"task & max tokens & avg@4 & p \\",
        r"\midrule",
        r"math\_500 \& more & 2,048 & $45.7 \pm 1.2$ & $0.0400$ \\",
        r"a|b &  & $100.0$ & $< 0.0001$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert latex(Table("t", ["B − A", r"\x^~{}"], [["–", "#$%"]])).splitlines()[3:6] == [
        r"B $-$ A & \textbackslash{}x\textasciicircum{}\textasciitilde{}\{\} \\",
        r"\midrule",
        r"-- & \#\$\% \\",
    ]


def test_the_terminal_aligns_text_left_and_numbers_right():
    console = Console(width=60, file=StringIO())
    console.print(rich_table(TABLE))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # pyright: ignore
    assert lines == [
        "task             max tokens       avg@4         p",
        "math_500 & more       2,048  45.7 ± 1.2    0.0400",
        "a|b                               100.0  < 0.0001",
    ]


def test_numbers_that_are_not_finite_are_null_in_json():
    assert json.dumps(plain({"a": [math.nan, 1.5], "b": (math.inf, "x")})) == '{"a": [null, 1.5], "b": [null, "x"]}'
