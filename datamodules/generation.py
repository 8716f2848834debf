"""The data module that poses questions to a model: to a teacher for annotation, to a student for evaluation."""

import warnings
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
from jsonargparse.typing import PositiveInt
from torch.utils.data import DataLoader

from datamodules.batching import TokenBudgetBatchSampler, pad_rows
from datamodules.prompts import get_prompt
from datamodules.questions import Question, load_questions
from datamodules.tokenization import encode_completion, encode_prompt, fingerprint_tokenizer, load_tokenizer


@dataclass(frozen=True)
class PosedQuestion:
    """A question as a model reads it.

    Attributes:
        question: The question.
        prompt_ids: The prompt's token ids.
        option_ids: For each option, the ids of the answer sentence that chooses it, end token included.
    """

    question: Question
    prompt_ids: list[int]
    option_ids: list[list[int]]


class QuestionDataModule(L.LightningDataModule):
    """Renders each question with a prompt; `predict` hands out every question that is not `done` once."""

    def __init__(
        self,
        tokenizer: str,
        questions: str,
        prompt: str = "cot",
        limit: PositiveInt | None = None,
        max_length: PositiveInt = 1024,
        skip_too_long: bool = False,
        tokens_per_batch: PositiveInt = 4096,
        revision: str | None = None,
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the model's own by default.
            questions: A file, `task:NAME:SPLIT[@FOLDER]`, or `microworld:SPLIT:NUMBER:SEED`.
            prompt: Name of the prompt: cot, few_shot, direct, instruction or plain.
            limit: Use only the first so many questions.
            max_length: Longest prompt in tokens.
            skip_too_long: Leave out questions with a longer prompt, counted in a warning, rather than refuse them.
            tokens_per_batch: Budget of a batch, in padded prompt tokens.
            revision: Commit of a hub tokenizer.
        """
        super().__init__()
        self.tokenizer_name, self.revision = tokenizer, revision
        self.questions_source, self.limit = questions, limit
        self.prompt = get_prompt(prompt)
        self.max_length, self.skip_too_long, self.tokens_per_batch = max_length, skip_too_long, tokens_per_batch
        self.done: set[str] = set()
        # A process may have nothing left to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.posed: dict[str, PosedQuestion] = {}

    def pose(self, question: Question) -> PosedQuestion:
        """Tokenizes a question's prompt and the answer sentences that choose its options."""
        _, prompt_ids = encode_prompt(self.tokenizer, self.prompt, question)
        sentences = [self.prompt.answer_sentence(question, letter) for letter in question.letters]
        options = [encode_completion(self.tokenizer, "", sentence)[0] for sentence in sentences]
        return PosedQuestion(question, prompt_ids, options)

    def setup(self, stage: str) -> None:
        """Reads and tokenizes, once.

        Raises:
            ValueError: A prompt is too long and `skip_too_long` is off, or none is left.
        """
        if self.posed:
            return
        self.tokenizer = load_tokenizer(self.tokenizer_name, self.revision)
        self.fingerprint = fingerprint_tokenizer(self.tokenizer)
        posed = [self.pose(question) for question in load_questions(self.questions_source, self.limit)]
        long = [item.question.id for item in posed if len(item.prompt_ids) > self.max_length]
        if long and (not self.skip_too_long or len(long) == len(posed)):
            raise ValueError(
                f"{len(long)} of {len(posed)} questions are longer than max_length={self.max_length} tokens, the first "
                f"is {long[0]!r}; raise it, or set skip_too_long to leave them out"
            )
        if long:
            warnings.warn(f"{len(long)} of {len(posed)} questions are too long and are left out", stacklevel=2)
        self.posed = {item.question.id: item for item in posed if len(item.prompt_ids) <= self.max_length}

    def collate(self, items: list[PosedQuestion]) -> dict[str, Any]:
        """Returns `question_ids`, and left-padded `input_ids` and `attention_mask`, int64 [B, S]."""
        pad_id = self.tokenizer.pad_token_id
        rows = [np.array(item.prompt_ids) for item in items]
        return {
            "question_ids": [item.question.id for item in items],
            "input_ids": pad_rows(rows, self.tokenizer.eos_token_id if pad_id is None else pad_id, left=True),
            "attention_mask": pad_rows([np.ones_like(row) for row in rows], 0, left=True),
        }

    def predict_dataloader(self) -> DataLoader:
        """Every question that is not in `done`, longest prompts first."""
        assert self.trainer is not None
        left: Any = [item for identifier, item in self.posed.items() if identifier not in self.done]
        lengths = [len(item.prompt_ids) for item in left]
        sampler = TokenBudgetBatchSampler(
            lengths, self.tokens_per_batch, None, self.trainer.global_rank, self.trainer.world_size
        )
        return DataLoader(left, batch_sampler=sampler, collate_fn=self.collate)
