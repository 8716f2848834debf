"""Tests of the grader: what common sense calls one answer, in either order, in any thread, within its budget."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.answers import grading
from datamodules.answers.grading import equal_expressions, is_correct
from datamodules.tasks.questions import Question
from datamodules.text.expressions import normalize_expression

EQUAL = [
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"3\sqrt{2}", r"\sqrt{18}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("x+1", "1+x"),
    (r"(x+1)^2", "x^2+2x+1"),
    ("x^2-y^2", "(x-y)(x+y)"),
    (r"2\pi", r"\pi\cdot 2"),
    (r"\pi r^2", r"r^2\pi"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1,2,3", "3,2,1"),
    ("-1,1", "1,-1"),
    (r"\pm 1", "1,-1"),
    ("2,3", r"\{2,3\}"),
    (r"6\text{ and }7", "6,7"),
    ("0.5", r"\frac12"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac{3}{4}", "0.75"),
    (r"\frac{2}{4}", r"\frac12"),
    (r"1\frac12", "1.5"),
    ("0.333333", r"\frac13"),
    (r"\frac{-3}{4}", r"-\frac{3}{4}"),
    (r"\frac{x}{2}", "x/2"),
    (r"\frac{x}{2}", "0.5x"),
    ("x=3", "3"),
    (r"x \in [1,2]", "[1,2]"),
    ("[1,2]", r"1\le x\le 2"),
    ("(1,2)", "(1, 2)"),
    (r"\left(3,\frac{\pi}{2}\right)", r"(3,\pi/2)"),
    (r"10\%", "10"),
    (r"10\%", "0.1"),
    (r"50\%", r"\frac{1}{2}"),
    (r"\$5", "5"),
    (r"5\text{ cm}", "5"),
    (r"90^\circ", "90"),
    ("1{,}000", "1000"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    (r"\log_2 8", "3"),
    (r"\ln e", "1"),
    ("2^{10}", "1024"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\infty", r"+\infty"),
    (r"(-\infty,3)\cup(3,\infty)", r"(-\infty,3)\cup(3,+\infty)"),
    (r"\text{(A)}", "A"),
    (r"\text{Evelyn}", "Evelyn"),
    ("3+4i", "4i+3"),
    (r"\sqrt[3]{8}", "2"),
    ("y=2x+1", "y=1+2x"),
    ("2x+1=y", "y=2x+1"),
    ("x<3", "3>x"),
    (r"1.5\times10^3", "1500"),
    (r"\emptyset", r"\{\}"),
]
DIFFERENT = [
    ("2", "3"),
    ("x+1", "x-1"),
    ("(1,2)", "(2,1)"),
    ("[1,2]", "(1,2)"),
    ("[1,2)", "[1,2]"),
    (r"\{1,2\}", r"\{1,3\}"),
    ("1,2", "12"),
    (r"\sqrt{2}", "2"),
    ("3.14", r"\pi"),
    ("0.33", r"\frac13"),
    (r"\text{odd}", r"\text{even}"),
    (r"\text{east}", r"\text{seat}"),
    ("x<3", "x>3"),
    ("1/2", "-1/2"),
    ("a^2", "a^3"),
    ("|x|", "x"),
    ("1011_2", "11"),
    ("", "3"),
    (r"\frac{1}{", "1"),
    ("__import__('os').getpid()", "1"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_one_answer_in_two_notations(one: str, other: str) -> None:
    assert equal_expressions(one, other) and equal_expressions(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_two_answers(one: str, other: str) -> None:
    assert not equal_expressions(one, other) and not equal_expressions(other, one)


def test_there_are_sixty_pairs_of_which_normal_forms_decide_fewer() -> None:
    assert len(EQUAL) + len(DIFFERENT) >= 60
    by_form = [normalize_expression(one) == normalize_expression(other) for one, other in EQUAL]
    assert sum(by_form) < len(by_form) / 2


TOKENS = st.sampled_from([*"0123456789xyπ+-=()[]{},.^_ ", r"\frac", r"\sqrt", r"\pi", r"\text{a}", "{1}", r"\%", r"\\"])


@given(st.lists(TOKENS, max_size=7).map("".join), st.lists(TOKENS, max_size=7).map("".join))
@settings(max_examples=60)
def test_the_order_changes_nothing(one: str, other: str) -> None:
    assert equal_expressions(one, other) == equal_expressions(other, one)
    assert equal_expressions(one, one)


def test_it_works_in_any_thread() -> None:
    pairs = [(f"{number}+x", f"x+{number}") for number in range(20, 28)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda pair: equal_expressions(*pair), pairs))


def test_a_killed_process_is_started_again() -> None:
    assert equal_expressions("x+31", "31+x")
    worker = grading._find_worker(os.getpid())
    assert worker._process is not None
    worker._process.send_signal(signal.SIGTERM)
    worker._process.wait()
    assert equal_expressions("x+32", "32+x")


@pytest.mark.slow
def test_a_comparison_without_end_is_no() -> None:
    assert not equal_expressions("9^{9^{9^9}}", "1")
    assert equal_expressions("x+33", "33+x")


def test_what_is_too_long_is_not_compared() -> None:
    assert not equal_expressions("1+" * 300 + "x", "x+" + "1+" * 300 + "0")


@pytest.mark.parametrize(
    ("question", "answer", "correct"),
    [
        (Question("q", "t", "test", "Which?", ("a", "b"), "B"), "B", True),
        (Question("q", "t", "test", "Which?", ("a", "b"), "B"), None, False),
        (Question("q", "t", "test", "Which?", ("a", "b"), None), "B", None),
        (Question("q", "t", "test", "How many?", None, "0.5"), "0.5", True),
        (Question("q", "t", "test", "How many?", None, "0.5"), "0.50001", False),
        (Question("q", "t", "test", "Solve.", None, r"2\sqrt{2}", expression=True), r"\sqrt{8}", True),
        (Question("q", "t", "test", "Solve.", None, r"2\sqrt{2}", expression=True), None, False),
    ],
)
def test_an_answer_is_graded_by_its_kind(question: Question, answer: str | None, correct: bool | None) -> None:
    assert is_correct(answer, question) is correct
