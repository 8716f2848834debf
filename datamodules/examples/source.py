"""Where examples come from: questions and rationales of files, tokenized with a prompt, as many as the filters keep."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.examples.encoding import PromptEncoding, check_template_options
from datamodules.examples.selection import (
    RationaleFilters,
    draw_questions,
    find_words,
    refuse_idle_seed,
    select_rationales,
)
from datamodules.examples.store import ExampleView, drop_too_long, open_store
from datamodules.examples.tokenization import (
    find_unknown,
    fingerprint_tokenizer,
    load_tokenizer,
    warn_of_unknown,
)
from datamodules.rationales.controls import AS_WRITTEN, TextControls
from datamodules.rationales.store import load_rationales, read_gold_conditions
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import load_questions


@dataclass(frozen=True)
class ExampleEncoding(PromptEncoding):
    """How examples are tokenized.

    Args:
        cache_dir: Keeps what was tokenized, for every run that needs the same.
    """

    cache_dir: str = "data/tokenized"


class ExampleSource:
    """Reads questions and rationales, and tokenizes what no run has tokenized yet.

    Args:
        tokenizer: Hub id, local folder or GGUF file.
        questions: A source of questions.
        rationales: Files of rationales.
        prompt: Name of the prompt that a student reads; or a teacher, which may see the gold answer or a rationale.
        limit: Use only so many questions.
        limit_seed: Draws them; None takes the first.
        encoding: How they are tokenized.
        filters: Which rationales are used.
        controls: What is changed in their texts.

    Attributes:
        num_left: How many rationales are left after each filter, once they are read.
        clusters: By question's id, what it shares with its translations or its group, once they are read; else its id.
    """

    def __init__(
        self,
        tokenizer: str,
        questions: str,
        rationales: list[str],
        prompt: str,
        limit: int | None,
        limit_seed: int | None,
        encoding: ExampleEncoding,
        filters: RationaleFilters,
        controls: TextControls,
    ):
        refuse_idle_seed("data.limit_seed", limit_seed, limit)
        self.tokenizer_name, self.questions, self.rationales = tokenizer, questions, rationales
        self.limit, self.limit_seed = limit, limit_seed
        self.prompt = get_prompt(prompt, False, encoding.template_options, encoding.prompt_language, privileged=True)
        self.encoding, self.filters, self.controls = encoding, filters, controls
        self.num_left: dict[str, int] = {}
        self.clusters: dict[str, str] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded and its template's options checked when it is first asked for."""
        tokenizer = load_tokenizer(self.tokenizer_name, self.encoding.revision)
        check_template_options(tokenizer, self.prompt.template_options)
        return tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """The tokenizer's."""
        return fingerprint_tokenizer(self.tokenizer)

    def read_labels(self) -> ExampleView:
        """Returns one example a question, its gold answer.

        Raises:
            ValueError: A question has none, or an example is too long.
        """
        examples = self._open(None)
        if (examples.lengths == 0).any():
            question_id = examples.where(examples.lengths == 0)[0].question_id
            raise ValueError(f"question {question_id!r} has no gold answer, which supervision `label` needs")
        return self._drop_too_long(examples)

    def read_rationales(self) -> ExampleView:
        """Returns one example a rationale that the filters keep, in the questions' order.

        Raises:
            ValueError: Nothing is left, a teacher has written nothing, or a rationale is empty or too long.
        """
        if not self.rationales:
            raise ValueError("data.rationales is empty; name at least one file of rationales")
        if self.prompt.shows_rationale:
            known = {question.id: question for question in load_questions(self.questions)}
            asked = dict.fromkeys(rationale.question_id for rationale in load_rationales(self.rationales, known))
            self.prompt.check_shown([known[question_id] for question_id in asked])
        examples = self._open(self.rationales)
        self._warn_of_mixed_conditions(set(self.filters.teachers or examples.column("teacher")))
        named = ", ".join(self.rationales)
        examples, self.num_left = select_rationales(examples, self.filters, named, self._find_words())
        return self._drop_too_long(examples)

    def _open(self, rationales: list[str] | None) -> ExampleView:
        """Returns the examples of `limit` questions: one a rationale, or, without, one a question."""
        questions = load_questions(self.questions)
        self.clusters = {question.id: question.cluster or question.id for question in questions}
        controls = self.controls if rationales else AS_WRITTEN
        cache_dir = Path(self.encoding.cache_dir)
        store = open_store(cache_dir, self.tokenizer, self.prompt, questions, rationales, controls)
        everything = ExampleView(store, np.arange(len(store)))
        if self.limit is None:
            return everything
        kept = {question.id for question in draw_questions(questions, self.limit, self.limit_seed)}
        return everything.where(np.array([question_id in kept for question_id in everything.column("question_id")]))

    def _find_words(self) -> set[str]:
        """Returns the ids of the rationales that hold, with their questions, a word that the filters leave out."""
        if self.filters.without is None:
            return set()
        questions = {question.id: question for question in load_questions(self.questions)}
        texts = {}
        for rationale in load_rationales(self.rationales, questions):
            question = questions[rationale.question_id]
            texts[rationale.id] = "\n".join((question.question, *(question.choices or ()), rationale.text))
        return find_words(self.filters.without, texts)

    def _warn_of_mixed_conditions(self, teachers: set[str]) -> None:
        """Warns if some teachers of this comparison were shown the gold answers and others were not."""
        conditions = read_gold_conditions(self.rationales)
        compared = (teachers | self.filters.compared) & set(conditions)
        shown = sorted(teacher for teacher in compared if conditions[teacher])
        if shown and len(shown) < len(compared):
            free = sorted(compared - set(shown))
            warnings.warn(
                f"{', '.join(shown)} wrote with the gold answer in view, {', '.join(free)} without: that alone "
                "may be what differs between them",
                stacklevel=2,
            )

    def _drop_too_long(self, examples: ExampleView) -> ExampleView:
        kept = drop_too_long(examples, self.encoding.max_length, self.encoding.skip_too_long)
        if len(kept) < len(examples):
            warnings.warn(f"{len(examples) - len(kept)} of {len(examples)} examples are too long", stacklevel=2)
        if not len(kept):
            raise ValueError(f"all {len(examples)} examples are longer than max_length={self.encoding.max_length}")
        if (unknown := find_unknown(self.tokenizer)) is not None:
            found = kept.where(kept.store.holds(unknown)[kept.rows])
            warn_of_unknown(self.tokenizer, "examples", found.column("id").tolist(), len(kept))
        return kept
