"""Tests of the rationales in captured texts: what follows a prompt, up to the end of the turn."""

import numpy as np

from datamodules.examples.tokenization import encode_prompt
from datamodules.logit_cache.captured import CapturedText
from datamodules.logit_cache.captured_rationales import read_rationales
from datamodules.rationales.store import Rationale
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question
from tests.tiny import build_tokenizer, make_questions

TOKENIZER, PROMPT, QUESTIONS = build_tokenizer(), get_prompt("plain"), make_questions(3)
END, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id


def capture(question: Question, text: str, *after: int) -> CapturedText:
    _, ids = encode_prompt(TOKENIZER, PROMPT, question)
    ids = [*ids, *TOKENIZER(text)["input_ids"], *after]
    rows = np.zeros((len(ids) - 1, 1), np.uint8)
    return CapturedText("here", np.array(ids, np.int32), rows, rows)


def read(
    *texts: CapturedText, questions: list[Question] = QUESTIONS, keep_thinking: bool = False
) -> tuple[list[Rationale], dict[str, int]]:
    kept, counts = read_rationales(texts, TOKENIZER, PROMPT, questions, "someone", keep_thinking)
    return kept, dict(counts)


def test_a_rationale_ends_with_its_turn_or_where_the_text_was_padded() -> None:
    first, second = (f"It is so. {PROMPT.answer_sentence(question, 'A')}" for question in QUESTIONS[:2])
    kept, counts = read(
        capture(QUESTIONS[0], first, END, 40, PAD),
        capture(QUESTIONS[1], second, PAD),
        capture(QUESTIONS[0], first, END),
        capture(QUESTIONS[2], "It is", 40),
    )
    assert [(own.question_id, own.sample, own.text, own.finish_reason) for own in kept] == [
        ("q0", 0, first, "stop"),
        ("q1", 0, second, "stop"),
        ("q0", 1, first, "stop"),
        ("q2", 0, "It is" + TOKENIZER.decode([40]), "length"),
    ]
    assert [own.answer for own in kept] == ["A", "A", "A", None] and not counts
    assert {own.teacher for own in kept} == {"someone"}
    assert [own.correct for own in kept] == [True, False, True, False]


def test_a_chat_is_read_as_its_template_writes_it() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    text = f"It is so. {PROMPT.answer_sentence(QUESTIONS[1], 'B')}"
    turns = [("user", PROMPT.render(QUESTIONS[1], chat=True)), ("assistant", text)]
    chat = tokenizer.apply_chat_template([{"role": role, "content": own} for role, own in turns], tokenize=False)
    ids = np.array([*tokenizer(chat)["input_ids"], PAD], np.int32)
    rows = np.zeros((len(ids) - 1, 1), np.uint8)
    [kept], counts = read_rationales([CapturedText("x", ids, rows, rows)], tokenizer, PROMPT, QUESTIONS, "someone")
    assert (kept.question_id, kept.text, kept.correct, kept.finish_reason) == ("q1", text, True, "stop") and not counts


def test_what_cannot_be_learnt_from_is_left_out_and_counted() -> None:
    question = QUESTIONS[0]
    answer = PROMPT.answer_sentence(question, "A")
    _, ids = encode_prompt(TOKENIZER, PROMPT, question)
    strange = CapturedText("here", np.array([*ids[1:], END], np.int32), *[np.zeros((len(ids), 1), np.uint8)] * 2)
    kept, counts = read(
        strange,
        capture(question, "", END),
        capture(question, f"\n\n{answer}", END),
        capture(question, f"{answer} Is it really so, and not otherwise, I ask?", END),
    )
    assert not kept
    assert counts == {
        "of no question": 1,
        "without a rationale": 1,
        "in other tokens than Kindred's, or without the answer sentence that Kindred adds": 2,
    }
    twin = Question("twin", *[getattr(question, name) for name in ("task", "split", "question", "choices", "gold")])
    assert read(capture(question, answer, END), questions=[*QUESTIONS, twin])[1] == {"of several questions": 1}


def test_thinking_is_a_part_of_what_is_learnt_only_if_asked_for() -> None:
    answer = f"It is so. {PROMPT.answer_sentence(QUESTIONS[0], 'A')}"
    text = capture(QUESTIONS[0], f"<think>\nHm.\n</think>\n\n{answer}", END)
    [kept], counts = read(text, keep_thinking=True)
    assert (kept.thinking, kept.text) == ("Hm.", answer) and not counts
    assert not read(text)[0]
