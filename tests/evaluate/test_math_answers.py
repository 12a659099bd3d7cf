"""MATH: extraction, the string rule, computer algebra."""

import time

import pytest

from puna.evaluate import math_answers
from puna.evaluate.math_answers import boxed, final_answer, same_string, same_value
from puna.evaluate.task import Example
from puna.evaluate.tasks.mathematics import math_check

EQUAL = [
    (r"\sqrt{1/n}", r"1/\sqrt{n}"),
    (r"\sqrt{\frac{1}{n}}", r"\frac{1}{\sqrt{n}}"),
    (r"x+1", r"1+x"),
    (r"2^{10}", r"1024"),
    (r"0.5", r"\frac{1}{2}"),
    (r"\frac12", r"1/2"),
    (r"\dfrac{3}{4}", r"\frac{3}{4}"),
    (r"\tfrac{3}{4}", r"0.75"),
    (r"(x+1)^2", r"x^2+2x+1"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"1,000", r"1000"),
    (r"12,345", r"12345"),
    (r"90^\circ", r"90"),
    (r"10\%", r"10"),
    (r"\$5", r"5"),
    (r"x=5", r"5"),
    (r"5\text{ cm}", r"5"),
    (r"(1,2)", r"(1, 2)"),
    (r"[2,5)", r"[2, 5)"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\text{(A)}", r"(A)"),
    (r"\text{Monday}", r"Monday"),
    (r"-\frac{1}{3}", r"\frac{-1}{3}"),
    (r"3+2i", r"2i+3"),
    (r"\pi/2", r"\frac{\pi}{2}"),
    (r"\frac{\pi}{2}", r"0.5\pi"),
    (r"\log_2 8", r"3"),
    (r"\binom{5}{2}", r"10"),
    (r"5!", r"120"),
    (r"\sin\frac{\pi}{6}", r"\frac12"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"x\in[0,1]", r"[0,1]"),
    (r"2\cdot 3", r"6"),
    (r"2 \times 10^3", r"2000"),
    (r"1.50", r"1.5"),
    (r".5", r"0.5"),
    (r"\frac{x^2-1}{x-1}", r"x+1"),
    (r"a^2-b^2", r"(a-b)(a+b)"),
    (r"\sqrt[3]{27}", r"3"),
    (r"(-\infty,3)", r"(-\infty, 3)"),
    (r"\left(\frac{1}{2},3\right)", r"(\frac12,3)"),
    (r"4210_5", r"4210_{5}"),
    (r"\sqrt2", r"\sqrt{2}"),
    (r"11\text{ square units}", r"11"),
]
DIFFERENT = [
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"1-1/e", r"1+1/e"),
    (r"4", r"4\sqrt{2}"),
    (r"(1,2)", r"(2,1)"),
    (r"1", r"2"),
    (r"0.333", r"\frac13"),
    (r"x", r"|x|"),
    (r"[2,5)", r"(2,5]"),
    (r"[2,5)", r"[2,5]"),
    (r"x+1", r"x-1"),
    (r"x+1", r"x+2"),
    (r"-5", r"5"),
    (r"1024", r"1042"),
    (r"\frac12", r"\frac13"),
    (r"\sqrt{2}", r"2"),
    (r"\sqrt{2}", r"1.41"),
    (r"3+2i", r"3-2i"),
    (r"\pi", r"3.14"),
    (r"\pi", r"\frac{22}{7}"),
    (r"\{1,2\}", r"\{1,3\}"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"A", r"B"),
    (r"\text{Monday}", r"\text{Tuesday}"),
    (r"yes", r"no"),
    (r"", r"5"),
    (r"y", r"x"),
    (r"x^2", r"x^3"),
    (r"2x", r"x^2"),
    (r"\sin x", r"\cos x"),
    (r"10%", r"0.01"),
    (r"1,000", r"1"),
    (r"12", r"1,2"),
    (r"100", r"10^3"),
    (r"\frac{1}{x}", r"x"),
    (r"5!", r"24"),
    (r"\log_2 8", r"2"),
    (r"\infty", r"-\infty"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"4210_5", r"4210_6"),
    (r"(1,2,3)", r"(1,2)"),
    (r"x\le 3", r"x\ge 3"),
    (r"x<3", r"x\le 3"),
    (r"\text{none}", r"0"),
]


def equal(answer: str, reference: str) -> bool:
    return same_string(answer, reference) or same_value(answer, reference, seconds=30)


def test_there_are_forty_pairs_of_each_verdict():
    assert len(EQUAL) >= 40 and len(DIFFERENT) >= 40


@pytest.fixture(scope="module")
def algebra():
    pytest.importorskip("math_verify")


def test_equal_answers_are_equal(algebra):
    assert [pair for pair in EQUAL if not equal(*pair)] == []


def test_different_answers_are_different(algebra):
    assert [pair for pair in DIFFERENT if equal(*pair)] == []


def test_a_comparison_that_hangs_ends_and_the_next_one_works(algebra):
    assert same_value("0.5", r"\frac{1}{2}")  # started
    began = time.monotonic()
    assert not same_value("9^{9^{9^9}}", "1", seconds=2)
    assert time.monotonic() - began < 4
    assert same_value("0.25", r"\frac{1}{4}")


def test_the_final_answer_is_the_stated_one_else_the_last_balanced_box():
    assert (
        final_answer("Final Answer: The final answer is $x\n= 5$. I hope it is correct. \\boxed{7}")
        == "x\n= 5"
    )
    assert final_answer(r"so \boxed{1} and $\boxed{\frac{\sqrt{2}}{3}}$.") == r"\frac{\sqrt{2}}{3}"
    assert final_answer(r"\[ \fbox{ 7 } \]") == "7" and final_answer(r"\boxed 9 $") == "9"
    assert final_answer("no answer") is None and boxed(r"\boxed{3 \boxed{4}") == "4"


def test_strict_and_flexible_verdicts_are_both_reported(algebra):
    example = Example(id="1", question="", references=(r"\frac{1}{2}",))
    exact = math_check(example, r"\boxed{\frac{1}{2}}")
    same = math_check(example, r"\boxed{0.5}")
    assert (exact.value, exact.also["strict"]) == (1, 1) and (same.value, same.also["strict"]) == (1, 0)
    assert math_check(example, "?").value == 0


def test_every_gold_answer_of_the_sample_equals_itself(real):
    from puna.evaluate.tasks import TASKS

    for example in TASKS["math"].read(real):
        assert same_string(example.references[0], f" {example.references[0]} "), example.id


def test_without_the_extra_only_strings_are_compared(monkeypatch):
    monkeypatch.setattr(math_answers, "find_spec", lambda name: None)
    assert not equal("0.5", r"\frac{1}{2}") and equal(r"\dfrac12", r"\frac{1}{2}")
