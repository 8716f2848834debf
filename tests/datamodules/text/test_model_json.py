r"""Tests of JSON that models wrote: LaTeX is kept to the character, what cannot be read says why."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.text.model_json import ReplyError, read_reply


@pytest.mark.parametrize(
    ("reply", "reasoning", "answer"),
    [
        # Valid JSON, and not what its author meant.
        (
            r'{"reasoning": "It is $\frac{1}{2}$, so \boxed{0.5}.", "answer": "0.5"}',
            r"It is $\frac{1}{2}$, so \boxed{0.5}.",
            "0.5",
        ),
        (
            r'{"reasoning": "$3 \times 2 \neq \nabla \text{a}$", "answer": "\frac{1}{2}"}',
            r"$3 \times 2 \neq \nabla \text{a}$",
            r"\frac{1}{2}",
        ),
        (
            r'{"reasoning": "$\theta \to \beta \right) \rho \tan$", "answer": "1"}',
            r"$\theta \to \beta \right) \rho \tan$",
            "1",
        ),
        (r'{"reasoning": "$1\underline{x}4$", "answer": "1"}', r"$1\underline{x}4$", "1"),
        (r'{"reasoning": "$a \ne 0$, so\ne = 2", "answer": "1"}', r"$a \ne 0$, so" + "\ne = 2", "1"),
        (
            r'{"reasoning": "so $\nu = 3$ and \(a \ni b\)\nu is 2", "answer": "3"}',
            r"so $\nu = 3$ and \(a \ni b\)" + "\nu is 2",
            "3",
        ),
        (r'{"reasoning": "$$x\nu = 3$$ and $5 each\nu = 2", "answer": "3"}', "$$x\nu = 3$$ and $5 each\nu = 2", "3"),
        (r'{"reasoning": "$a \nmid b$ \textcolor{red}{c}", "answer": "3"}', r"$a \nmid b$ \textcolor{red}{c}", "3"),
        (r'{"reasoning": "$a \thickapprox b \nleftarrow c$", "answer": "3"}', r"$a \thickapprox b \nleftarrow c$", "3"),
        ('{"Reasoning": "So.", "Answer": "5"}', "So.", "5"),
        # Malformed JSON.
        (r'{"reasoning": "\(\sin 0 = 0\).", "answer": "0"}', r"\(\sin 0 = 0\).", "0"),
        (r'{"reasoning": "\[a \\ b\]\nThen \"so\".", "answer": "0"}', r"\[a \\ b\]" + '\nThen "so".', "0"),
        ('{"reasoning": "He said "stop", and left.", "answer": "7"}', 'He said "stop", and left.', "7"),
        ('{"reasoning": "Line\nline\ttab", "answer": "7"}', "Line\nline\ttab", "7"),
        ('{"reasoning": `It\'s 5.`, "answer": "5"}', "It's 5.", "5"),
        ('{"reasoning": "So 5.", "answer": 5.0}', "So 5.", "5.0"),
        ('{"reasoning": "So.", "answer": $5}', "So.", "$5"),
        ('{"reasoning": "So.", "answer": "5",}', "So.", "5"),
        ('{"answer": "5", "reasoning": "So."}', "So.", "5"),
        ('{"reasoning": ["One.", "Two."], "answer": [3, 5]}', "One.\nTwo.", "3, 5"),
        ('{"reasoning": "6 miles.\n\n    "answer": "6"\n}', "6 miles.", "6"),
        # JSON as it should be.
        (
            r'{"reasoning": "$\\frac{1}{2}$\nThen \\(x\\), \"so\" \\\\ b", "answer": "\\frac12"}',
            r"$\frac{1}{2}$" + "\nThen " + r'\(x\), "so" \\ b',
            r"\frac12",
        ),
        (r'{"reasoning": "caf\u00e9 \ud83d\ude00\nnext", "answer": "1"}', "café 😀\nnext", "1"),
        (r'{"reasoning": "one\nnot two\ttext", "answer": "1"}', "one\nnot two\ttext", "1"),
        # Prose, fences, and what follows.
        ('Here:\n```json\n{"reasoning": "So.", "answer": "5"}\n```\nI hope $x_{1}$ helps.', "So.", "5"),
        (
            'With $\\frac{a}{b}$: {"reasoning": "So.", "answer": "5"} and {"reasoning": "___", "answer": "___"}',
            "So.",
            "5",
        ),
        ('{"reasoning": "So **Answer:** it is 5.", "answer": "5"}', "So **Answer:** it is 5.", "5"),
    ],
)
def test_a_reply_keeps_what_its_author_meant(reply: str, reasoning: str, answer: str) -> None:
    assert read_reply(reply) == (reasoning, answer)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty"),
        ("I cannot say.", "no JSON object"),
        (r"So $\frac{1}{2}$.", "no JSON object"),
        ('{"reasoning": "9', "cut off"),
        ('{"reasoning": "9.", ', "cut off"),
        ('{"reasoning": "9."}', "no answer"),
        ('{"answer": "9"}', "no reasoning"),
        ('{"reasoning": "9.", "answer": null}', "no answer"),
        ('{"reasoning": "9.", "answer": {"a": 1}}', "answer is no single value"),
        ('{"reasoning": {"step": 1}, "answer": "9"}', "reasoning is no text"),
        ('{"reasoning": "___", "answer": "___"}', "not filled in"),
        ('{"reasoning": "a", "answer": "1"} No: {"reasoning": "b", "answer": "2"}', "several different answers"),
    ],
)
def test_what_cannot_be_read_says_why(reply: str, reason: str) -> None:
    with pytest.raises(ReplyError, match=f"^{reason}$"):
        read_reply(reply)


# Neither control characters, which no model writes, nor what stands for nothing.
CHARACTERS = st.one_of(st.characters(exclude_categories=["Cs", "Cc"]), st.just("\n"))
TEXTS = st.text(CHARACTERS, min_size=1, max_size=60).filter(
    lambda text: text.replace("_", " ").replace(".", " ").strip()
)


@given(TEXTS, TEXTS)
def test_well_formed_json_is_read_as_json(reasoning: str, answer: str) -> None:
    assert read_reply(json.dumps({"reasoning": reasoning, "answer": answer})) == (reasoning, answer)


@given(st.text(alphabet='{}[]"\\nrtbfu0,:` reasoningswe\n', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        reasoning, answer = read_reply('{"reasoning": "' + text)
    except ReplyError:
        return
    assert isinstance(reasoning, str) and isinstance(answer, str)
