"""What a GGUF file is checked on: texts of every kind, prompts, and rationales that it was not calibrated on."""

import random
from collections.abc import Sequence, Set
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import decode_completion, encode_texts
from datamodules.examples.store import ExampleView
from datamodules.examples.tokenization import Example, build_examples, encode_prompts
from datamodules.rationales.store import Rationale, load_rationales
from datamodules.tasks.prompts import Prompt
from datamodules.tasks.questions import Question, load_questions

NUM_TEXTS, NUM_PROMPTS, NUM_MEASURED = 500, 50, 24
# Digits, marks, lines, code and other scripts; pieces of them are put together below.
_PIECES = (
    *("0", "7", "42", "1234567", "3.14159", "1,000,000", "2x + 3y = 12", "12:30", "50%", "$5.00", "(a) 1/2", "#9"),
    *("don't", "I'll", "WE'RE", "e.g.", "well-known", "A) B) C)", "...", "?!", '"quoted"', "a_b-c", "x\ty", "a  b   c"),
    *("one\ntwo", "one\n\ntwo\n\n\nthree", "- item\n- item", "line\n 2", "def f(x):\n    return x ** 2", "</answer>"),
    *("Größe", "naïve café", "¿Qué?", "Привет, мир", "Ελληνικά", "שלום", "مرحبا ١٢٣", "नमस्ते", "হ্যালো", "สวัสดี", "தமிழ்"),
    *(
        "你好，世界。",
        "答えは44です",
        "안녕하세요",
        "Tiếng Việt",
        "🙂👍🏽",
        "½ ≤ √2 × π",
        "a\u00a0b",
        "œuvre",
        "ЁЖ",
        "İI",
    ),
)


@dataclass(frozen=True)
class Probes:
    """What a student's files are checked on.

    Attributes:
        texts: To tokenize.
        unwritable: What was left out of them, since the student's tokenizer has no token for a character of it.
        questions: Whose prompts are answered.
        prompts: Text and token ids of their prompts.
        calibration: Examples whose inputs say what matters.
        measured: Others, on which distributions are compared.
        teachers: Whose rationales these are.
        prompt: How the student is asked.
    """

    texts: list[str]
    unwritable: list[str]
    questions: list[Question]
    prompts: list[tuple[str, list[int]]]
    calibration: list[Example]
    measured: list[Example]
    teachers: list[str]
    prompt: Prompt


@dataclass(frozen=True)
class _Found:
    """What probes are made of.

    Attributes:
        source: Where it is from, for messages.
        examples: To calibrate on and to measure on.
        asked: Questions to answer.
        texts: To tokenize.
        teachers: Whose rationales these are.
    """

    source: str
    examples: Sequence[Example]
    asked: Sequence[Question]
    texts: Sequence[str]
    teachers: Set[str]


def refuse_evaluation(questions: Sequence[Question], source: str) -> None:
    """Raises a ValueError if a question is not one that students train on."""
    for question in questions:
        if question.split != "train":
            raise ValueError(
                f"{source}: holds rationales of {question.id!r}, a question of the split {question.split!r}; calibrate "
                "on training rationales alone, so that no question that the student is judged by plays a part"
            )


def mix_texts(texts: Sequence[str], pieces: Sequence[str], number: int, seed: int = 0) -> list[str]:
    """Returns so many texts at least: these, these pieces, and words of theirs put together by a seed."""
    draw = random.Random(seed)
    words = [word for text in texts for word in text.split()]
    mixed = [*pieces, *texts]
    while len(mixed) < number:
        parts = [draw.choice((pieces or words) if draw.random() < 0.4 else words) for _ in range(draw.randrange(2, 12))]
        mixed.append(draw.choice((" ", "\n", ", ", "")).join(parts))
    return mixed


def _keep_writable(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """Returns the texts that a tokenizer has tokens for; what llama.cpp does with others is its own."""
    unknown = tokenizer.unk_token_id
    encoded = encode_texts(tokenizer, texts)
    return [text for text, own in zip(texts, encoded, strict=True) if unknown is None or unknown not in own.ids]


def collect(
    tokenizer: PreTrainedTokenizerBase,
    questions_source: str | list[str],
    paths: list[str],
    prompt: Prompt,
    num_calibration: int,
    longest: int,
) -> Probes:
    """Returns what a student's files are checked on, and calibrated on.

    Args:
        tokenizer: The student's.
        questions_source: The training questions.
        paths: Training rationales of them.
        prompt: How the student is asked.
        num_calibration: Rationales to calibrate on, at most; a fifth of all is left for comparing distributions.
        longest: Longest example, in tokens; longer ones are left out.

    Raises:
        ValueError: A rationale is of an evaluation question, or there are too few.
    """
    questions = {question.id: question for question in load_questions(questions_source)}
    rationales: list[Rationale] = load_rationales(paths, questions)
    used = {rationale.question_id for rationale in rationales}
    source = ", ".join(paths)
    refuse_evaluation([question for identifier, question in questions.items() if identifier in used], source)
    kept = [rationale for rationale in rationales if rationale.text.strip() and not rationale.is_truncated]
    random.Random(0).shuffle(kept)
    pairs: list[tuple[Question, Rationale | None]] = [(questions[own.question_id], own) for own in kept]
    examples = build_examples(tokenizer, prompt, pairs[: num_calibration + 2 * NUM_MEASURED])
    asked = [question for question, _ in pairs]
    texts, teachers = [own.text for own in kept[:200]], {own.teacher for own in kept}
    return _assemble(_Found(source, examples, asked, texts, teachers), tokenizer, prompt, num_calibration, longest)


def collect_learned(
    tokenizer: PreTrainedTokenizerBase,
    questions_source: str,
    learned: ExampleView,
    prompt: Prompt,
    num_calibration: int,
    longest: int,
) -> Probes:
    """Returns the same from what a student learned from: rationales, or the answers alone.

    Args:
        tokenizer: The student's.
        questions_source: The training questions.
        learned: The training's own examples.
        prompt: How the student is asked.
        num_calibration: Examples to calibrate on, at most.
        longest: Longest example, in tokens; longer ones are left out.

    Raises:
        ValueError: An example is of an evaluation question, or there are too few.
    """
    questions = {question.id: question for question in load_questions(questions_source)}
    order = list(range(len(learned)))
    random.Random(0).shuffle(order)
    examples = [learned[number] for number in order[: num_calibration + 2 * NUM_MEASURED]]
    used = {questions[str(identifier)].id for identifier in learned.column("question_id")}
    refuse_evaluation([question for identifier, question in questions.items() if identifier in used], questions_source)
    asked = [questions[example.question_id] for example in examples]
    ids = [example.token_ids[example.num_prompt_tokens :].tolist() for example in examples[:200]]
    texts, teachers = [decode_completion(tokenizer, own) for own in ids], {own.teacher for own in examples} - {""}
    where = f"the training on {questions_source}"
    return _assemble(_Found(where, examples, asked, texts, teachers), tokenizer, prompt, num_calibration, longest)


def _assemble(
    found: _Found, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, num_calibration: int, longest: int
) -> Probes:
    examples = [example for example in found.examples if 0 < len(example.token_ids) <= longest]
    if len(examples) < 4:
        raise ValueError(
            f"{found.source}: {len(examples)} rationales fit {longest} tokens (--calibration_length), with their "
            "prompts; a calibration needs 4 at least: raise it, or name more rationales"
        )
    num_measured = min(NUM_MEASURED, max(2, len(examples) // 5))
    asked = list({question.id: question for question in found.asked}.values())[:NUM_PROMPTS]
    prompts = encode_prompts(tokenizer, prompt, asked)
    own_texts = [text.strip() for text in [*found.texts, *(question.question for question in asked)]]
    pieces, writable = _keep_writable(tokenizer, _PIECES), _keep_writable(tokenizer, own_texts)
    mixed = _keep_writable(tokenizer, mix_texts(writable, pieces, 2 * NUM_TEXTS))
    if len(mixed) < NUM_TEXTS:
        raise ValueError(
            f"{found.source}: the tokenizer has characters for {len(mixed)} texts; {NUM_TEXTS} are compared"
        )
    return Probes(
        texts=mixed[:NUM_TEXTS],
        unwritable=[piece for piece in _PIECES if piece not in pieces],
        questions=asked,
        prompts=[own for own in prompts if len(own[1]) < longest],
        calibration=examples[num_measured:][:num_calibration],
        measured=examples[:num_measured],
        teachers=sorted(found.teachers),
        prompt=prompt,
    )
