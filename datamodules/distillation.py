"""The data modules that turn questions and rationales into batches, for scoring by a teacher and for training."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import TokenBudgetBatchSampler, collate_examples
from datamodules.files import hash_text
from datamodules.logit_cache import LogitCache
from datamodules.prompts import get_prompt
from datamodules.questions import Question, load_questions
from datamodules.rationales import Rationale, load_rationales, read_metadata
from datamodules.tokenization import (
    Example,
    Supervision,
    build_example,
    drop_too_long,
    fingerprint_tokenizer,
    load_tokenizer,
)


class ExampleDataset(Dataset):
    """Examples, each with its cached planes where there is a cache.

    Args:
        examples: The examples.
        caches: By example id.
    """

    def __init__(self, examples: list[Example], caches: dict[str, LogitCache]):
        self.examples = examples
        self.caches = caches

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Example, dict[str, np.ndarray] | None]:
        example = self.examples[index]
        return example, self.caches[example.id].read(example) if self.caches else None


class Collate(NamedTuple):
    """Collates dataset items; a class, so that workers can be spawned.

    Attributes:
        pad_id: Fills rows on the right.
        temperatures: Of the cache's planes.
    """

    pad_id: int
    temperatures: tuple[float, ...]

    def __call__(self, items: list[tuple[Example, dict[str, np.ndarray] | None]]) -> dict[str, Any]:
        """Returns `collate_examples`'s batch, with `target` planes where all items have them."""
        examples, planes = zip(*items, strict=True)
        batch = collate_examples(list(examples), self.pad_id)
        if self.temperatures:
            names = ("support", "log_probs", "log_normalizers", "log_tails")
            target = {name: torch.from_numpy(np.concatenate([plane[name] for plane in planes])) for name in names}
            batch["target"] = {**target, "support": target["support"].long()}
            batch["temperatures"] = self.temperatures
        return batch


class RationaleDataModule(L.LightningDataModule):
    """Pairs questions with teachers' rationales and tokenizes them; `predict` hands out every example once.

    This is what a teacher reads to score its own, or another's, rationales.
    """

    def __init__(
        self,
        tokenizer: str,
        questions: str,
        rationales: list[str] | None = None,
        teachers: list[str] | None = None,
        prompt: str = "instruction",
        limit: PositiveInt | None = None,
        samples_per_question: PositiveInt | None = None,
        correct_only: bool = True,
        max_length: PositiveInt = 1024,
        skip_too_long: bool = False,
        tokens_per_batch: PositiveInt = 2048,
        revision: str | None = None,
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the model's own by default.
            questions: A file, `hub:NAME[@REVISION]:CONFIG:SPLIT`, or `microworld:SPLIT:NUMBER:SEED`.
            rationales: Rationale stores (parquet) and published collections (jsonl, jsonl.gz).
            teachers: Use only the rationales of these teachers; null uses all that the files hold.
            prompt: Name of the prompt that the student reads: cot, instruction or plain.
            limit: Use only the first so many questions.
            samples_per_question: Use at most so many rationales of each question and teacher.
            correct_only: Use only rationales that reached the gold answer.
            max_length: Longest example in tokens.
            skip_too_long: Leave out longer examples, counted in a warning, rather than refuse them.
            tokens_per_batch: Budget of a batch, in padded tokens.
            revision: Commit of a hub tokenizer.
        """
        super().__init__()
        self.tokenizer_name, self.revision = tokenizer, revision
        self.questions_source, self.limit = questions, limit
        self.rationale_paths, self.teachers = rationales or [], teachers
        self.prompt = get_prompt(prompt)
        self.samples_per_question, self.correct_only = samples_per_question, correct_only
        self.max_length, self.skip_too_long = max_length, skip_too_long
        self.tokens_per_batch = tokens_per_batch
        self.done: set[str] = set()
        self.examples: list[Example] = []
        # In prediction a process may have nothing left to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def load_texts(self) -> list[tuple[Question, Rationale | None]]:
        """Returns the (question, rationale) pairs that the filters keep, in the questions' order.

        Raises:
            ValueError: Nothing is left.
        """
        everything = load_questions(self.questions_source)
        kept = {question.id: question for question in everything[: self.limit]}
        if not self.rationale_paths:
            raise ValueError("data.rationales is empty; name at least one file of rationales")
        known = {question.id: kept.get(question.id) for question in everything}
        rationales = load_rationales(self.rationale_paths, known, self.teachers)
        by_question: dict[str, list[Rationale]] = {identifier: [] for identifier in kept}
        counts: dict[tuple[str, str], int] = {}
        for rationale in rationales:
            if self.correct_only and rationale.correct is not True:
                continue
            key = (rationale.question_id, rationale.teacher)
            counts[key] = counts.get(key, 0) + 1
            if self.samples_per_question is None or counts[key] <= self.samples_per_question:
                by_question[rationale.question_id].append(rationale)
        pairs: list[tuple[Question, Rationale | None]] = [
            (kept[identifier], rationale) for identifier, group in by_question.items() for rationale in group
        ]
        if not pairs:
            raise ValueError(
                f"{', '.join(self.rationale_paths)}: none of {len(rationales)} rationales is left after filtering"
                f"{' (correct_only is on)' if self.correct_only else ''}; there is nothing to supervise"
            )
        return pairs

    def build_examples(self) -> list[Example]:
        """Tokenizes what `load_texts` returns."""
        self.tokenizer = load_tokenizer(self.tokenizer_name, self.revision)
        self.fingerprint = fingerprint_tokenizer(self.tokenizer)
        examples = [build_example(self.tokenizer, self.prompt, *pair) for pair in self.load_texts()]
        kept = drop_too_long(examples, self.max_length, self.skip_too_long)
        if len(kept) < len(examples):
            warnings.warn(f"{len(examples) - len(kept)} of {len(examples)} examples are too long", stacklevel=2)
        if not kept:
            raise ValueError(f"all {len(examples)} examples are longer than max_length={self.max_length}")
        return kept

    def setup(self, stage: str) -> None:
        """Reads and tokenizes, once."""
        if not self.examples:
            self.examples = self.build_examples()

    @property
    def pad_id(self) -> int:
        """The padding token, which no loss or attention sees; the end token serves where there is none."""
        pad_id = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad_id is None else pad_id

    def make_loader(
        self, examples: list[Example], seed: int | None, caches: dict[str, LogitCache], **options
    ) -> DataLoader:
        """Returns this process's loader over examples in token-budget batches, with planes if there are caches."""
        assert self.trainer is not None
        sampler = TokenBudgetBatchSampler(
            [len(example.token_ids) for example in examples],
            self.tokens_per_batch,
            seed,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        temperatures = caches[examples[0].id].description.temperatures if caches else ()
        collate: Any = Collate(self.pad_id, temperatures)
        return DataLoader(ExampleDataset(examples, caches), batch_sampler=sampler, collate_fn=collate, **options)

    def predict_dataloader(self) -> DataLoader:
        """Every example that is not in `done`, longest first."""
        left = [example for example in self.examples if example.id not in self.done]
        return self.make_loader(left, seed=None, caches={})


class DistillationDataModule(RationaleDataModule):
    """What a student learns from: gold labels, rationales, or rationales with the teacher's cached logits."""

    def __init__(
        self,
        tokenizer: str,
        questions: str,
        supervision: Supervision = "rationale",
        logits: list[str] | None = None,
        logits_teacher: str | None = None,
        validation_fraction: ClosedUnitInterval = 0.0,
        split_seed: NonNegativeInt = 0,
        order_seed: NonNegativeInt = 0,
        num_workers: NonNegativeInt = 0,
        **kwargs,
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the student's own by default.
            questions: A file, `hub:NAME[@REVISION]:CONFIG:SPLIT`, or `microworld:SPLIT:NUMBER:SEED`.
            supervision: label, rationale, or rationale+logits.
            logits: Logit caches, one for each teacher; used with rationale+logits only.
            logits_teacher: Take logits of this teacher whoever wrote the rationale; null takes the writer's.
            validation_fraction: Share of the questions that is held out for `val/` metrics.
            split_seed: Chooses the held-out questions.
            order_seed: Shuffles the batches.
            num_workers: Loader processes.
            kwargs: See `RationaleDataModule`.
        """
        super().__init__(tokenizer, questions, **kwargs)
        self.supervision, self.logit_paths, self.logits_teacher = supervision, logits or [], logits_teacher
        self.validation_fraction, self.split_seed = validation_fraction, split_seed
        self.order_seed, self.num_workers = order_seed, num_workers
        self.caches: list[LogitCache] = []
        self.cache_of_example: dict[str, LogitCache] = {}
        self.train_examples: list[Example] = []
        self.val_examples: list[Example] = []
        if supervision == "rationale+logits" and not self.logit_paths:
            raise ValueError("supervision is rationale+logits, but data.logits names no logit cache")
        if supervision != "rationale+logits" and self.logit_paths:
            warnings.warn(f"data.logits is not read with supervision {supervision}", stacklevel=2)
        if supervision == "label" and self.rationale_paths:
            warnings.warn("data.rationales is not read with supervision label", stacklevel=2)

    def load_texts(self) -> list[tuple[Question, Rationale | None]]:
        """Returns the pairs to learn from; without rationales if supervision is `label`."""
        if self.supervision == "label":
            return [(question, None) for question in load_questions(self.questions_source, self.limit)]
        pairs = super().load_texts()
        self._check_teachers({rationale.teacher for _, rationale in pairs if rationale})
        return pairs

    def _check_teachers(self, writers: set[str]) -> None:
        """Refuses caches of another teacher, or of another revision of it, than wrote the rationales."""
        if self.supervision != "rationale+logits":
            return
        self.caches = [LogitCache(Path(path)) for path in self.logit_paths]
        cached = {cache.description.teacher for cache in self.caches}
        wanted = writers if self.logits_teacher is None else {self.logits_teacher}
        if cached != wanted:
            raise ValueError(
                f"{', '.join(self.logit_paths)}: logits of {sorted(cached)}, but those of {sorted(wanted)} are wanted; "
                "set data.logits_teacher to teach with another teacher's logits than the writer's"
            )
        if len({cache.description.row_type for cache in self.caches}) > 1:
            raise ValueError(f"{', '.join(self.logit_paths)}: captured with different temperatures or kinds of rows")
        revisions = {cache.description.teacher: cache.description.revision for cache in self.caches}
        for path in (Path(path) for path in self.rationale_paths if path.endswith(".parquet")):
            made = read_metadata(path)
            if made.get("teacher") in revisions and made["revision"] != revisions[made["teacher"]]:
                raise ValueError(
                    f"{path}: written by revision {made['revision']} of {made['teacher']!r}, but the logits are of "
                    f"revision {revisions[made['teacher']]}; capture again"
                )

    def setup(self, stage: str) -> None:
        """Reads, tokenizes, checks the caches, and splits by question."""
        if self.examples:
            return
        super().setup(stage)
        for cache in self.caches:
            examples = self.examples
            if self.logits_teacher is None:
                examples = [example for example in examples if example.teacher == cache.description.teacher]
            cache.check(self.tokenizer_name, self.tokenizer, self.prompt.id, examples)
            self.cache_of_example |= {example.id: cache for example in examples}
        ids = sorted(
            {example.question_id for example in self.examples}, key=lambda i: hash_text(f"{self.split_seed}{i}")
        )
        held_out = set(ids[: round(self.validation_fraction * len(ids))])
        self.val_examples = [example for example in self.examples if example.question_id in held_out]
        self.train_examples = [example for example in self.examples if example.question_id not in held_out]
        if not self.train_examples:
            raise ValueError(f"validation_fraction={self.validation_fraction} leaves no question to learn from")

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the questions that are not held out."""
        return self.make_loader(
            self.train_examples, self.order_seed, self.cache_of_example, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader | list:
        """The held-out questions, equally many batches for each process; nothing where none are held out."""
        if not self.val_examples:
            return []
        return self.make_loader(self.val_examples, self.split_seed, self.cache_of_example, num_workers=self.num_workers)
