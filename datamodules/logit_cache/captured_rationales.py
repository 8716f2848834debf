"""The rationales that captured texts hold: what follows a question's prompt, up to the end of the turn."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import decode_completion, find_end_tokens
from datamodules.examples.tokenization import build_examples, encode_prompts
from datamodules.logit_cache.captured import CapturedText, PrefixIndex
from datamodules.rationales.store import Rationale, parse_written
from datamodules.tasks.prompts import Prompt
from datamodules.tasks.question_index import QuestionIndex
from datamodules.tasks.questions import Question

TEXTS_PER_BATCH = 4096


class _Found(NamedTuple):
    """A rationale, and the tokens that the teacher read of it and before it."""

    question: Question
    rationale: Rationale
    token_ids: np.ndarray


def read_rationales(
    captures: Iterable[CapturedText],
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    questions: Sequence[Question],
    writer: str,
    keep_thinking: bool = False,
) -> tuple[list[Rationale], Counter[str]]:
    """Returns the rationales of captured texts whose distributions a cache can hold, and what was left out.

    Args:
        captures: The texts.
        tokenizer: The teacher's, which read them.
        prompt: What stands before each rationale.
        questions: Whose prompts are looked for.
        writer: Who wrote the rationales.
        keep_thinking: What was thought is a part of what is learnt.

    Raises:
        ValueError: A row is torn, or of another tokenizer.
    """
    counts, samples = Counter[str](), Counter[str]()
    kept: list[Rationale] = []
    batch: list[_Found] = []

    def keep() -> None:
        pairs = [(found.question, found.rationale) for found in batch]
        examples = build_examples(tokenizer, prompt, pairs, keep_thinking=keep_thinking)
        for found, example in zip(batch, examples, strict=True):
            wanted = example.token_ids[:-1]
            if not len(example.token_ids) or not np.array_equal(found.token_ids[: len(wanted)], wanted):
                counts["in other tokens than Kindred's, or without the answer sentence that Kindred adds"] += 1
                continue
            kept.append(replace(found.rationale, sample=samples[found.question.id]))
            samples[found.question.id] += 1
        batch.clear()

    for found in _find_rationales(captures, tokenizer, prompt, questions, writer, counts):
        batch.append(found)
        if len(batch) == TEXTS_PER_BATCH:
            keep()
    keep()
    return kept, counts


def _find_rationales(
    captures: Iterable[CapturedText],
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    questions: Sequence[Question],
    writer: str,
    counts: Counter[str],
) -> Iterator[_Found]:
    by_id, index = {question.id: question for question in questions}, QuestionIndex(questions)
    prompts = [np.array(ids, np.int32) for _, ids in encode_prompts(tokenizer, prompt, questions)]
    prompt_index, ends = PrefixIndex(prompts), find_end_tokens(tokenizer)
    for text in captures:
        found = prompt_index.find(text.token_ids)
        # A prompt that another one begins with is the shorter; the same prompt twice is nobody's.
        if not found or len(found[-1]) > 1:
            counts["of several questions" if found else "of no question"] += 1
            continue
        number = found[-1][0]
        ids, is_whole = _cut_completion(text.token_ids[len(prompts[number]) :], ends, tokenizer.pad_token_id)
        record = {
            "question_id": questions[number].id,
            "rationale": decode_completion(tokenizer, ids),
            "teacher": writer,
            "finish_reason": "stop" if is_whole else "length",
        }
        if not record["rationale"].strip():
            counts["without a rationale"] += 1
            continue
        [rationale] = parse_written(record, text.where, by_id, index)
        yield _Found(questions[number], rationale, text.token_ids[: len(text.values)])


def _cut_completion(ids: np.ndarray, ends: Sequence[int], padding: int | None) -> tuple[list[int], bool]:
    """Returns a completion's tokens before its end, and whether it ended: DistillKit pads what was not cut off."""
    is_end = np.isin(ids, [*ends, *([] if padding is None else [padding])])
    return ids[: int(is_end.argmax()) if is_end.any() else len(ids)].tolist(), bool(is_end.any())
