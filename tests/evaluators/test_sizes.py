"""How large answers are, by value."""

from __future__ import annotations

import time

import pytest
from grading_cases import PAIRS

from speclrm.evaluators import sizes

TOO_MUCH = [
    # Powers, by the value of what is in the exponent.
    "9^{9^9}",
    "9**9**9",
    "9^9^9^9",
    "2^{2^{40}}",
    "2^{100!}",
    "7^{10^6}",
    "2^{1,000,000}",
    "(1/3)^{99999}",
    "1^{9^{9^{9}}}",
    "2^{900000--900000}",
    "9^{1/2^{-30}}",
    "2^{n+1000000000}",
    "|x+9|^{99999}",
    "5)^{99999}",
    r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{999999}",
    r"\log(9^{9^9})",
    r"e^{9^9}",
    r"\exp(9^9)",
    "1e999999",
    r"1.5\cdot10^{99999}",
    # Factorials, and what is made of them.
    "100000!",
    "(10^{9})!",
    "170!!!!",
    r"\Gamma(10^6)",
    r"\frac{(n+999)!}{n!}",
    r"\binom{1000000}{500000}",
    r"\binom{x}{9999}",
    r"\\binom{x}{9999}",
    r"{10^6 \choose 5\cdot 10^5}",
    "(11111111)_{2}",
    # Terms.
    "(x+1)^{999}",
    "(x+y+z+w+1)^{99}",
    "((x+1)^{999}+(y+2)^{999})^{99}",
    "((x+1)(x+2)(y+3)(z+4)(w+1))^9",
    "(a+b)(c+d)(f+g)(h+k)(l+m)(n+o)(p+q)(r+s)(t+u)",
    r"(1+\sqrt{2})^{2000}",
    r"\frac{x^{99999}-1}{x-1}",
    r"\sum_{k=1}^{10^{12}} k^k",
    r"\sum x",
    # Roots of what has too many digits to look for factors, and brackets within brackets.
    r"\sqrt{10^{2000}+1}",
    "(10^{9000}+7)^{x}",
    r"\frac{1}{1+" * 20 + "x" + "}" * 20,
    r"\sqrt" * 60 + "2",
    "(" * 300 + "1" + ")" * 300,
    "7" * 1_001,
]

FINE = [
    r"2^2\cdot3^3\cdot4^4",
    "2^{100}",
    "10^{18}",
    "2^{2024}",
    "2025^{2025}",
    "2^{2^{10}}",
    "2^{10000-9999}",
    r"2^{\frac{2024}{2}}",
    r"\frac{3^{1010}-1}{2}\pm\frac{\sqrt{9^{1010}-1}}{4}\,i",
    r"\left(\frac{1}{3}\right)^{2024}",
    "1.05^{30}",
    "7" * 999,
    "(x+1)^5",
    "(x+1)^{255}",
    "(x+y)^{10}-(x-y)^{10}",
    "x^8 + x^7 + x^6 + x^5 + x^4 + x^3 + x^2 + x + 1",
    "x^{2023}",
    r"\frac{x^{2024}-1}{x-1}",
    "(1+i)^{20}",
    "i^{2024}",
    r"10^{2^n-n-1}",
    "2^{2^{n}}",
    "x^{x^x}",
    "(-1)^{n+1}",
    r"\binom{100}{50}",
    r"\binom{1000000000}{3}",
    r"\binom{2n}{n}",
    r"\binom{x}{9}",
    "100!",
    "(3!)!",
    "(n+1)!",
    r"\frac{2024!}{2022!}",
    r"\sum_{k=1}^{100} k",
    r"\sqrt{2+\sqrt{2+\sqrt{2}}}",
    r"1+\frac{1}{1+\frac{1}{1+\frac{1}{1+\frac{1}{2}}}}",
    r"\text{right triangle}",
    "For all $n$, Bob has a winning strategy!",
    "(" + ",".join(f"x_{{{n}}}" for n in range(100)) + ")",
]


@pytest.mark.parametrize("text", TOO_MUCH, ids=lambda text: text[:40])
def test_what_grows_beyond_all_bounds_is_too_much(text: str) -> None:
    assert sizes.too_much(text)


@pytest.mark.parametrize("text", FINE, ids=lambda text: text[:40])
def test_what_people_answer_is_not_too_much(text: str) -> None:
    assert not sizes.too_much(text)


def test_no_answer_of_the_table_is_too_much() -> None:
    assert not [text for _, gold, answer, _ in PAIRS for text in (gold, answer) if sizes.too_much(text)]


def test_brackets_may_be_deeper_where_no_parser_of_latex_reads_them() -> None:
    deep = "(" * 20 + "1" + ")" * 20
    assert sizes.too_much(deep)
    assert not sizes.too_much(deep, nesting_max=40)


@pytest.mark.parametrize(("light", "heavy"), [("\\frac{1}{2}", "(x+1)^{99}"), ("2", "2^{100}"), ("x", "x^{99}")])
def test_what_has_more_to_compute_weighs_more(light: str, heavy: str) -> None:
    assert sizes.weight(light) < sizes.weight(heavy) / 2


@pytest.mark.parametrize(
    "piece", ["x^2+", "\\frac{1}{x}+", "9!", "2^", "\\sqrt2+", "(a+b)(c+d)", "{(", "|x|^", "a_", "\\binom", "\\frac"]
)
def test_any_text_is_read_in_milliseconds(piece: str) -> None:
    text = (piece * 1_000)[: sizes.LENGTH_MAX]
    started = time.process_time()
    for _ in range(5):
        sizes.too_much(text)
    assert (time.process_time() - started) / 5 < 0.25  # some 0.005 on a machine with nothing else to do
