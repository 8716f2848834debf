"""Controls of a comparison of teachers: seeded changes to their rationales that leave out one explanation at a time.

A rationale teaches by what it says, by its form, by its length and by where its answer stands. Where the answer stands
is made the same for all (`remove_answer`), what is said is taken away and the form kept (`shuffle_rationales`), or
equally many of nearly the same lengths are chosen (`match_lengths`).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveFloat

from datamodules.answers.extractors import extract_neutral, find_breaks, find_statements
from datamodules.answers.replies import cut_run_on
from datamodules.files.atomic import hash_text
from datamodules.rationales.store import Rationale
from datamodules.tasks.questions import Question

AnswerPosition = Literal["first", "last"]
Pair = tuple[Question, Rationale]
# Between the longest and the shortest rationale of a set of matched lengths.
MAX_RATIO = 1.25


@dataclass(frozen=True)
class TextControls:
    """What is changed in rationales before they are tokenized.

    Args:
        answer_position: Put every answer first or last, in the prompt's words; null leaves it where it is.
        shuffled: Give each rationale the reasoning of another question of its task, and leave it its own answer: what
            the form of a rationale teaches. Its plain arm is one with answer_position last, which it implies.
        shuffle_seed: Of what is shuffled.
        thinking: Whether a student also learns what teachers wrote between think marks; they and the thoughts then
            stand before the rationale, and count as a part of it.

    Raises:
        ValueError: `thinking` is kept where another control moves the answers.
    """

    answer_position: AnswerPosition | None = None
    shuffled: bool = False
    shuffle_seed: NonNegativeInt = 0
    thinking: Literal["keep", "drop"] = "drop"

    def __post_init__(self) -> None:
        if self.thinking == "keep" and (self.answer_position or self.shuffled):
            raise ValueError(
                "data.controls.thinking keep leaves answers where they are; not with answer_position or shuffled"
            )

    @property
    def position(self) -> AnswerPosition | None:
        """Where the answer stands; of shuffled rationales last, unless said otherwise, since none is in the text."""
        return self.answer_position or ("last" if self.shuffled else None)

    @property
    def identity(self) -> dict[str, object]:
        """What the texts depend on."""
        seed = self.shuffle_seed if self.shuffled else None
        return {"position": self.position, "shuffle_seed": seed, "thinking": self.thinking}


@dataclass(frozen=True)
class DistillationControls(TextControls):
    """What a training changes in rationales, and in whose distributions they come with.

    Args:
        logits_teacher: Take logits of this teacher whoever wrote the rationale; null takes the writer's.
        logit_weights: Mix the distributions of these teachers on every text, whoever wrote it, by weight; each needs
            caches of all the rationales. Null: each text has the distributions of one teacher alone.

    Raises:
        ValueError: Both say whose logits, or the weights are of one teacher or not finite.
    """

    logits_teacher: str | None = None
    logit_weights: dict[str, PositiveFloat] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logit_weights is None:
            return
        if len(self.logit_weights) < 2 or not np.isfinite(list(self.logit_weights.values())).all():
            raise ValueError("data.controls.logit_weights mixes two teachers at least, by finite weights")
        if self.logits_teacher is not None:
            raise ValueError("data.controls.logits_teacher and logit_weights both say whose logits; leave one out")


AS_WRITTEN = TextControls()


def remove_answer(text: str, question: Question, answer: str | None) -> str:
    """Returns a rationale without the sentences that state its answer, wherever they stand."""
    stated = find_statements(text, question)
    if (last := extract_neutral(text, question)) and last.rule == "line letter":
        stated.append(last)
    spans = [(found.start, found.end) for found in stated if found.answer == answer]
    kept = [
        text[start:end]
        for start, end in pairwise(find_breaks(text, question))
        if not any(a < end and start < b for a, b in spans)
    ]
    return "".join(kept).strip()


def shuffle_rationales(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Gives each rationale the reasoning of another question's, and leaves it its own answer.

    The reasonings of one task, teacher and sample with equally right answers change places in one cycle, so each is
    used once and none stays. What is left to learn from is how such a text looks, and the answer. A rationale is left
    out if it consists of its answer alone, or if there is no other to change places with.

    Args:
        pairs: Questions and their rationales.
        seed: Of the cycle.

    Returns:
        The pairs that are left, in their order.
    """
    reasonings, groups = {}, defaultdict[tuple[Any, ...], list[str]](list)
    for question, rationale in pairs:
        text = cut_run_on(rationale.text.strip(), question)
        if reasoning := remove_answer(text, question, rationale.answer):
            reasonings[rationale.id] = reasoning
            kind = (rationale.task, rationale.teacher, rationale.sample, rationale.correct, rationale.answer is None)
            groups[kind].append(rationale.id)
    donors: dict[str, str] = {}
    for ids in groups.values():
        ids.sort(key=lambda identifier: hash_text(f"{seed}{identifier}"))
        if len(ids) > 1:
            donors |= zip(ids, [*ids[1:], ids[0]], strict=True)
    return [
        (question, replace(rationale, text=reasonings[donors[rationale.id]]))
        for question, rationale in pairs
        if rationale.id in donors
    ]


def match_lengths(
    lengths: Sequence[int], teachers: Sequence[str], question_ids: Sequence[str], compared: Sequence[str], seed: int
) -> np.ndarray:
    """Chooses as many sets as there are of one rationale of each teacher, of nearly the same length.

    From the shortest up: where the shortest left of each teacher fit together they are a set, else the shortest of all
    fits nothing that is left and is dropped.

    Args:
        lengths: Of each rationale, above 0.
        teachers: Who wrote it.
        question_ids: About what.
        compared: The teachers that are matched.
        seed: Orders rationales of the same length; all teachers take questions in the same order.

    Returns:
        bool [N]; False for all rationales of other teachers.
    """
    queues = {teacher: list[int]() for teacher in compared}
    order = sorted(
        range(len(lengths)), key=lambda number: (lengths[number], hash_text(f"{seed}{question_ids[number]}"))
    )
    for number in order:
        if teachers[number] in queues:
            queues[teachers[number]].append(number)
    kept = np.zeros(len(lengths), dtype=bool)
    heads = dict.fromkeys(compared, 0)
    while all(heads[teacher] < len(queues[teacher]) for teacher in compared):
        chosen = {teacher: queues[teacher][heads[teacher]] for teacher in compared}
        shortest = min(compared, key=lambda teacher: lengths[chosen[teacher]])
        if max(lengths[number] for number in chosen.values()) <= MAX_RATIO * lengths[chosen[shortest]]:
            kept[list(chosen.values())] = True
            heads = {teacher: place + 1 for teacher, place in heads.items()}
        else:
            heads[shortest] += 1
    return kept
