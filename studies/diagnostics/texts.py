"""What a student would read of each rationale, in tokens and in steps, and what it made of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import encode_texts
from datamodules.examples.tokenization import ANSWER, encode_completions, split_completion
from datamodules.files.atomic import hash_json, hash_text
from datamodules.rationales.store import Rationale
from datamodules.tasks.prompts import Prompt
from datamodules.tasks.questions import Question
from datamodules.text.sentences import ANY_SENTENCE_END
from losses.targets import SoftenedTarget


def name_question(question: Question) -> str:
    """Names a question and what is asked: an edited one is another."""
    return f"{question.id}#{hash_json([question.question, question.choices, question.language])[:16]}"


@dataclass(frozen=True)
class Text:
    """One rationale as a student would learn it.

    Attributes:
        question: Its question.
        rationale: The rationale.
        completion: Rationale and answer sentence.
        token_ids: The completion by the student's tokenizer, and the end token.
        is_answer: bool [tokens]: which tokens are the answer sentence or the end token.
        offsets: int [tokens - 1, 2]: the characters where each token but the end token begins and ends.
        steps: Numbers of the tokens with which steps (sentences, or lines) begin; the first is 0.
    """

    question: Question
    rationale: Rationale
    completion: str
    token_ids: list[int]
    is_answer: np.ndarray
    offsets: np.ndarray
    steps: np.ndarray

    @property
    def key(self) -> str:
        """Names the rationale, its text and its question's: an edited one is another."""
        return f"{self.rationale.id}#{hash_text(name_question(self.question) + self.completion)}"

    @property
    def num_bytes(self) -> int:
        """Length of the completion in UTF-8."""
        return len(self.completion.encode())


def split_steps(text: str) -> list[tuple[int, int]]:
    """Returns where the steps of a text, its sentences and lines, begin and end."""
    breaks = [(0, 0), *(match.span() for match in ANY_SENTENCE_END.finditer(text)), (len(text), len(text))]
    spans = [(start, end) for (_, start), (end, _) in pairwise(breaks)]
    return [(start, end) for start, end in spans if text[start:end].strip()]


def build_texts(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, pairs: Sequence[tuple[Question, Rationale]]
) -> list[Text]:
    """Tokenizes rationales, and finds the tokens with which their steps begin."""
    parts = [split_completion(question, rationale, prompt) for question, rationale in pairs]
    completions = [" ".join(part for part in both if part) for both in parts]
    offsets = [encoded.offsets for encoded in encode_texts(tokenizer, completions)]
    texts = []
    for (question, rationale), completion, (token_ids, segments), spans in zip(
        pairs, completions, encode_completions(tokenizer, parts), offsets, strict=True
    ):
        characters = np.array(spans).reshape(-1, 2)
        # A step begins with the first token that reaches beyond its first character.
        starts = [start for start, _ in split_steps(completion)]
        steps = np.unique(np.searchsorted(characters[:, 1], starts, side="right"))
        is_answer = np.array(segments) == ANSWER
        texts.append(Text(question, rationale, completion, token_ids, is_answer, characters, steps))
    return texts


@dataclass(frozen=True)
class Reading:
    """A text, and what the student made of it; all float arrays, in nats where not said otherwise.

    Attributes:
        text: The text.
        nll: -log q(token | prompt, what is before it) [tokens].
        rank: 1 + the number of tokens that the student finds more probable [tokens].
        entropy: Of the student's next-token distribution [tokens].
        alone: -log q(token | what is before it in the completion), without the prompt, from the second token on.
        local: Each step's mean surprisal given the prompt and a few steps before it [steps].
        kl: KL to the teacher's cached distribution [tokens]; nan without a cache.
        mass: The student's probability of the teacher's cached tokens [tokens]; nan without a cache.
        agreement: Whether both find the same token the most probable [tokens]; nan without a cache.
    """

    text: Text
    nll: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    alone: np.ndarray
    local: np.ndarray
    kl: np.ndarray
    mass: np.ndarray
    agreement: np.ndarray


class AlignedText(NamedTuple):
    """How a completion's rows in the student's tokens follow from the teacher's.

    Attributes:
        counts: The student's rows by class, see `datamodules.examples.alignment.CLASSES`; all none where the tokens of
            either side do not spell the text.
        shared_mass: Sum over the teacher's rows of the probability of cached tokens that the student has, too.
        cached_mass: Likewise of all cached tokens; nan of a cache without distributions over tokens, and so
            `shared_mass`.
        ends: Whether the teacher finds the end of its turn the most probable where the completion ends; None of such a
            cache.
    """

    counts: dict[str, int]
    shared_mass: float
    cached_mass: float
    ends: bool | None


class CommonRows(NamedTuple):
    """What a teacher's cached rows say where its tokens and the student's meet.

    Attributes:
        target: Of the student's rows whose token is one of the teacher's, in the student's tokens: cached tokens of the
            same bytes, and one bucket for the rest.
        rows: bool [N]: which of the student's rows those are.
        best: int64 [N]: the student's token of the bytes that the teacher finds the most probable, -1 for none; -2 in
            rows that begin inside a token of the teacher's.
    """

    target: SoftenedTarget
    rows: np.ndarray
    best: np.ndarray


class Direction(NamedTuple):
    """What a teacher's distributions would change on one rationale.

    Attributes:
        cosine: Of the gradients of cross-entropy and of KL(p || q); nan where either is 0.
        divergent: Rows at which the teacher's most probable token is not the student's.
        rows: That begin where a token of the teacher's does.
    """

    cosine: float
    divergent: int
    rows: int


class Overlap(NamedTuple):
    """What student and teacher have in common along one of the student's own answers.

    Attributes:
        shared: Sum over states of how many of the teacher's most probable tokens are among the student's, by bytes.
        states: Places at which a token of either begins, the end of the answer among them.
    """

    shared: int
    states: int
