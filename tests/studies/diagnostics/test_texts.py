"""Steps of a text, and the tokens with which they begin."""

from datamodules.tasks.prompts import get_prompt
from studies.diagnostics.texts import build_texts, split_steps
from tests.studies.diagnostics.conftest import make_pairs
from tests.tiny import build_tokenizer


def test_steps_are_sentences_and_lines() -> None:
    text = "One step. Another!\n- a line\n\nThe answer is A) 3.5."
    assert [text[start:end] for start, end in split_steps(text)] == [
        "One step.", "Another!", "- a line", "The answer is A) 3.5.",
    ]  # fmt: skip


def test_a_step_begins_with_the_token_that_holds_its_first_character() -> None:
    tokenizer = build_tokenizer()
    for text in build_texts(tokenizer, get_prompt("plain"), make_pairs()):
        assert tokenizer.decode(text.token_ids[:-1]) == text.completion
        assert text.token_ids[-1] == tokenizer.eos_token_id and text.is_answer[-1]
        assert len(text.steps) == len(split_steps(text.completion)) and text.steps[0] == 0
        for token, (start, _) in zip(text.steps, split_steps(text.completion), strict=True):
            first, last = text.offsets[token]
            assert first <= start < last or (first, last) == (start - 1, start)
