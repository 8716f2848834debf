"""The data module that poses questions to a model, to a teacher for annotation; `evaluation.py` adds to it."""

import warnings
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from datamodules.batches.packing import CPU_WRITTEN_TOKENS, BatchSize, PredictionSampler
from datamodules.examples.encoding import PromptEncoding, check_template_options
from datamodules.examples.selection import draw_questions, refuse_idle_seed
from datamodules.examples.tokenization import (
    encode_prompt,
    find_unknown,
    fingerprint_tokenizer,
    load_tokenizer,
    warn_of_unknown,
)
from datamodules.rationales.store import Rationale, drop_truncated, load_rationales, read_gold_conditions
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question, load_questions


@dataclass(frozen=True)
class PosedQuestion:
    """A question as a model reads it.

    Attributes:
        question: The question.
        text: The prompt, chat template and all; without a tokenizer, the user's message of a chat.
        prompt_ids: The prompt's token ids; empty without a tokenizer.
    """

    question: Question
    text: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class QuestionDraw:
    """Which of the questions are posed: a part of them, as each round of on-policy distillation takes one.

    Args:
        number: Questions of a part; null poses all.
        part: Which part, counted from 0; when all questions had their turn, they are shuffled anew. A part that begins
            in one turn and ends in the next has no question twice.
        seed: Of the order in which they have it.
        limit_seed: Draws the questions of `data.limit`, as `data.limit_seed` of a training does; null takes the first.
    """

    number: PositiveInt | None = None
    part: NonNegativeInt = 0
    seed: NonNegativeInt = 0
    limit_seed: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if self.number is None and (self.part or self.seed or self.limit_seed is not None):
            raise ValueError(
                "data.draw.part, data.draw.seed and data.draw.limit_seed would be ignored without data.draw.number"
            )

    def choose(self, questions: list[Question]) -> list[Question]:
        """Returns the part, in the questions' order.

        Raises:
            ValueError: It has more questions than there are.
        """
        if self.number is None:
            return questions
        if self.number > len(questions):
            raise ValueError(f"data.draw.number={self.number}, but there are {len(questions)} questions; lower it")
        first, drawn = self.part * self.number, list[int]()
        for turn in range(1 + (first + self.number - 1) // len(questions)):
            # A part that begins in the turn before takes none of its own twice.
            begun = {*drawn[len(drawn) // self.number * self.number :]}
            order = np.random.default_rng((self.seed, turn)).permutation(len(questions))
            drawn += sorted(order.tolist(), key=begun.__contains__)
        return [questions[number] for number in sorted(drawn[first : first + self.number])]


def load_originals(
    path: str, teacher: str | None, questions: list[Question], keep_truncated: bool = False
) -> dict[str, Rationale]:
    """Returns the first rationale of each question, by question id; those without text are left out.

    Args:
        path: A rationale store or a published collection.
        teacher: Whose; None takes the file's only teacher.
        questions: All that the file may be about.
        keep_truncated: Whether to take truncated ones, too, which are left out otherwise.

    Raises:
        ValueError: The teacher has none, or there are several and none is named.
    """
    rationales = load_rationales([path], {question.id: question for question in questions})
    teachers = sorted({rationale.teacher for rationale in rationales})
    if teacher is None and len(teachers) == 1:
        [teacher] = teachers
    if teacher not in teachers:
        wanted = "data.rewrites_of is not set" if teacher is None else f"no rationale of {teacher!r}"
        raise ValueError(f"{path}: {wanted}; there are {teachers}")
    found: dict[str, Rationale] = {}
    own = [rationale for rationale in rationales if rationale.teacher == teacher]
    for rationale in drop_truncated(own, path, keep_truncated):
        if rationale.text.strip():
            found.setdefault(rationale.question_id, rationale)
    return found


class QuestionDataModule(L.LightningDataModule):
    """Renders each question with a prompt; `predict` hands out every question and sample that is not `done` once.

    Where a budget counts tokens, what is `done` comes again in a batch with what is not: a model's numbers depend on
    the batch, and what a killed process lost is to be the same, to the bit.

    Attributes:
        num_samples: Completions of each question; set by the module that predicts.
        max_new_tokens: Longest completion, which a batch has room for; likewise.
        token_budget: Of a batch, in tokens; set likewise, where a GPU's memory says it.
        requests_per_batch: Completions of a batch in place of a token budget, for an engine that batches by itself.
        done: Which (question id, sample) are not needed.
        posed: The questions by id, after `setup`.
    """

    def __init__(
        self,
        tokenizer: str | None,
        questions: list[str] | str,
        prompt: str = "cot",
        limit: PositiveInt | None = None,
        encoding: PromptEncoding = PromptEncoding(),  # noqa: B008 (frozen)
        batches: BatchSize = BatchSize(),  # noqa: B008 (frozen)
        rewrites: str | None = None,
        rewrites_of: str | None = None,
        keep_truncated: bool = False,
        draw: QuestionDraw = QuestionDraw(),
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the model's own by default. Null, for a teacher that takes
                text, leaves prompts untokenized and their length unchecked.
            questions: A file, `task:NAME:SPLIT[:LANGUAGE][@FOLDER]`, or `microworld:SPLIT:NUMBER:SEED[:LANGUAGE]`; or a
                list of these.
            prompt: Name of the prompt: cot, few_shot, direct, instruction or plain.
            limit: Use only the first so many questions of each source.
            encoding: How prompts are tokenized.
            batches: Budget of a batch: completions x (longest prompt + longest completion), in tokens.
            rewrites: Rationales that the model is to rewrite, with a prompt that shows them (paraphrase, translate):
                the first of each question; questions without one are left out.
            rewrites_of: Of this teacher; null if the file has only one.
            keep_truncated: Take rationales, too, that were cut off where their teacher ran out of tokens.
            draw: Which of the questions are posed.
        """
        super().__init__()
        self.tokenizer_name, self.encoding, self.batches = tokenizer, encoding, batches
        self.questions_source, self.limit, self.draw = questions, limit, draw
        self.prompt = get_prompt(prompt, rewrites is not None, encoding.template_options, encoding.prompt_language)
        self.rewrites, self.rewrites_of, self.keep_truncated = rewrites, rewrites_of, keep_truncated
        for name, is_given in (("keep_truncated", keep_truncated), ("rewrites_of", rewrites_of is not None)):
            if is_given and rewrites is None:
                raise ValueError(f"data.{name} is given without data.rewrites, and would be ignored")
        refuse_idle_seed("data.draw.limit_seed", draw.limit_seed, limit)
        self.originals: dict[str, Rationale] = {}
        self.num_samples, self.max_new_tokens = 1, 0
        self.token_budget = batches.choose(CPU_WRITTEN_TOKENS)
        self.requests_per_batch: int | None = None
        self.done: set[tuple[str, int]] = set()
        # A process may have nothing left to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.posed: dict[str, PosedQuestion] = {}

    def pose(self, question: Question) -> PosedQuestion:
        """Tokenizes a question's prompt."""
        rationale = self.originals[question.id].text.strip() if self.originals else ""
        if self.tokenizer is None:
            return PosedQuestion(question, self.prompt.render(question, True, rationale), [])
        return PosedQuestion(question, *encode_prompt(self.tokenizer, self.prompt, question, rationale))

    def setup(self, stage: str) -> None:
        """Reads and tokenizes, once.

        Raises:
            ValueError: A prompt is too long and `skip_too_long` is off, or none is left.
        """
        if self.posed:
            return
        self.tokenizer: Any = (
            None if self.tokenizer_name is None else load_tokenizer(self.tokenizer_name, self.encoding.revision)
        )
        self.fingerprint = None if self.tokenizer is None else fingerprint_tokenizer(self.tokenizer)
        if self.tokenizer is not None:
            check_template_options(self.tokenizer, self.prompt.template_options)
        if self.draw.limit_seed is None:
            questions = load_questions(self.questions_source, self.limit)
        else:
            questions = [*draw_questions(load_questions(self.questions_source), self.limit, self.draw.limit_seed)]
        questions = self.draw.choose(questions)
        if self.rewrites is not None:
            everything = load_questions(self.questions_source)
            self.originals = load_originals(self.rewrites, self.rewrites_of, everything, self.keep_truncated)
            questions = [question for question in questions if question.id in self.originals]
            if not questions:
                raise ValueError(f"{self.rewrites}: no rationale of the questions, and so nothing to rewrite")
        posed = [self.pose(question) for question in questions]
        long = [item.question.id for item in posed if len(item.prompt_ids) > self.encoding.max_length]
        if long and (not self.encoding.skip_too_long or len(long) == len(posed)):
            raise ValueError(
                f"{len(long)} of {len(posed)} questions are longer than max_length={self.encoding.max_length} tokens, "
                f"the first is {long[0]!r}; raise it, or set skip_too_long to leave them out"
            )
        if long:
            warnings.warn(f"{len(long)} of {len(posed)} questions are too long and are left out", stacklevel=2)
        self.posed = {item.question.id: item for item in posed if len(item.prompt_ids) <= self.encoding.max_length}
        if self.tokenizer is not None and (unknown := find_unknown(self.tokenizer)) is not None:
            found = [identifier for identifier, item in self.posed.items() if unknown in item.prompt_ids]
            warn_of_unknown(self.tokenizer, "questions", found, len(self.posed))

    @property
    def highest_id(self) -> int:
        """The highest token id of all prompts; -1 if they are not tokenized."""
        return max((max(item.prompt_ids, default=-1) for item in self.posed.values()), default=-1)

    def find_asked(self) -> list[tuple[str, int]]:
        """Returns every (question id, sample), question by question."""
        return [(identifier, sample) for identifier in self.posed for sample in range(self.num_samples)]

    def find_missing(self) -> list[tuple[str, int]]:
        """Returns those of `find_asked` that are not in `done`."""
        return [item for item in self.find_asked() if item not in self.done]

    def describe_missing(self) -> str:
        """Returns every prompt that `find_missing` finds, and what asking would take at most."""
        missing = self.find_missing()
        texts = [self.posed[question_id].text for question_id, _ in missing]
        prompts = [f"--- {item[0]}, sample {item[1]}\n{text}" for item, text in zip(missing, texts, strict=True)]
        summary = (
            f"--- {len(missing)} requests, prompts of {sum(map(len, texts))} characters in all, "
            f"completions of {len(missing) * self.max_new_tokens} tokens at most; nothing was asked"
        )
        return "\n".join([*prompts, summary])

    @property
    def originals_saw_gold(self) -> bool | None:
        """Whether who wrote what is rewritten was shown the gold answers; None if that is not known."""
        assert self.rewrites is not None
        [teacher] = {rationale.teacher for rationale in self.originals.values()}
        return read_gold_conditions([self.rewrites]).get(teacher)

    def collate(self, items: list[tuple[str, int]]) -> dict[str, Any]:
        """Returns `question_ids` and `samples`."""
        return {"question_ids": [item[0] for item in items], "samples": [item[1] for item in items]}

    def count_tokens(self, question_id: str) -> int:
        """Returns what a question takes of a batch: its prompt and the longest completion."""
        return len(self.posed[question_id].prompt_ids) + self.max_new_tokens

    def predict_dataloader(self) -> DataLoader[Any]:
        """This process's batches with something missing, longest prompts first where a budget counts tokens."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        items: Any
        if self.requests_per_batch is None:
            items, budget = self.find_asked(), self.token_budget
            lengths = [self.count_tokens(identifier) for identifier, _ in items]
        else:
            items = self.find_missing()
            lengths, budget = [1] * len(items), min(self.requests_per_batch, -(-len(items) // world_size))
        sampler = PredictionSampler(lengths, budget, rank, world_size, [item not in self.done for item in items])
        return DataLoader(items, batch_sampler=sampler, collate_fn=self.collate)
