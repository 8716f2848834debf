"""The data modules that turn questions and rationales into batches, for scoring by a teacher and for training."""

import math
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from datamodules.batches.loading import Collate, ResumableLoader, check_processes, loader_options
from datamodules.batches.packing import EpochDraw, PredictionSampler, StepSampler
from datamodules.examples.encoding import check_template_options
from datamodules.examples.selection import RationaleFilters, select_rationales
from datamodules.examples.store import ExampleView, drop_too_long, open_store
from datamodules.examples.tokenization import Supervision, fingerprint_tokenizer, load_tokenizer
from datamodules.files.atomic import hash_text
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.controls import AS_WRITTEN, AnswerPosition, TextControl
from datamodules.rationales.store import read_gold_conditions, read_metadata
from datamodules.tasks.prompts import TemplateOptions, get_prompt
from datamodules.tasks.questions import load_questions


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
        template_options: TemplateOptions | None = None,
        thinking: Literal["keep", "drop"] = "drop",
        limit: PositiveInt | None = None,
        samples_per_question: PositiveInt | None = None,
        correct_only: bool = True,
        keep_truncated: bool = False,
        answered_by: list[str] | None = None,
        solved_by: list[str] | None = None,
        matched_with: list[str] | None = None,
        answer_position: AnswerPosition | None = None,
        shuffled: bool = False,
        control_seed: NonNegativeInt = 0,
        max_length: PositiveInt = 1024,
        skip_too_long: bool = False,
        tokens_per_batch: PositiveInt = 2048,
        revision: str | None = None,
        cache_dir: str = "data/tokenized",
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the model's own by default.
            questions: A file, `task:NAME:SPLIT[@FOLDER]`, or `microworld:SPLIT:NUMBER:SEED`.
            rationales: Rationale stores (parquet) and published collections (jsonl, jsonl.gz).
            teachers: Use only the rationales of these teachers; null uses all that the files hold.
            prompt: Name of the prompt that the student reads: cot, few_shot, direct, instruction or plain.
            template_options: What its chat template is told beside the message, such as {enable_thinking: false}.
            thinking: Whether a student also learns what teachers wrote between think marks; they and the thoughts then
                stand before the rationale, and count as a part of it.
            limit: Use only the first so many questions.
            samples_per_question: Use at most so many rationales of each question and teacher.
            correct_only: Use only rationales that reached the gold answer.
            keep_truncated: Use rationales, too, that were cut off where their teacher ran out of tokens.
            answered_by: Use only questions that each of these teachers answered, whether it is used or not; `teachers`
                says whose rationales are. Arms with one teacher each then learn from the same questions.
            solved_by: Likewise, only questions that each of these teachers answered right at least once.
            matched_with: Use only rationales to which each of these teachers, the used one among them, has another with
                nearly as many words; the arms of all then have equally many. Chosen after the filters.
            answer_position: Put every answer first or last, in the prompt's words; null leaves it where it is.
            shuffled: Give each rationale the reasoning of another question of its task, and leave it its own answer:
                what the form of a rationale teaches. Its plain arm is one with answer_position last, which it implies.
            control_seed: Of what is shuffled, and of the choice among rationales of matched lengths.
            max_length: Longest example in tokens.
            skip_too_long: Leave out longer examples, counted in a warning, rather than refuse them.
            tokens_per_batch: What fits a process's memory at a time, in padded tokens; it does not change the result.
            revision: Commit of a hub tokenizer.
            cache_dir: Keeps what was tokenized, for every run that needs the same.
        """
        super().__init__()
        self.tokenizer_name, self.revision = tokenizer, revision
        self.questions_source, self.limit = questions, limit
        self.rationale_paths = rationales or []
        self.prompt = get_prompt(prompt, template_options=template_options)
        self.filters = RationaleFilters(
            teachers,
            answered_by or [],
            solved_by or [],
            correct_only,
            samples_per_question,
            keep_truncated,
            matched_with or [],
            control_seed,
        )
        if thinking == "keep" and (answer_position or shuffled):
            raise ValueError("data.thinking keep leaves answers where they are; not with answer_position or shuffled")
        self.text_control = TextControl(answer_position, control_seed if shuffled else None, thinking == "keep")
        # How many rationales are left after each filter.
        self.num_left: dict[str, int] = {}
        self.max_length, self.skip_too_long = max_length, skip_too_long
        self.tokens_per_batch = tokens_per_batch
        self.cache_dir = Path(cache_dir)
        self.done: set[str] = set()
        self.examples: ExampleView
        self.is_set_up = False
        # In prediction a process may have nothing left to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def open_examples(self, rationales: list[str] | None) -> ExampleView:
        """Returns the examples of the first `limit` questions: one per rationale, or, without, one per question."""
        questions = load_questions(self.questions_source)
        control = self.text_control if rationales else AS_WRITTEN
        store = open_store(self.cache_dir, self.tokenizer, self.prompt, questions, rationales, control)
        everything = ExampleView(store, np.arange(len(store)))
        if self.limit is None:
            return everything
        kept = {question.id for question in questions[: self.limit]}
        return everything.where(np.array([question_id in kept for question_id in everything.column("question_id")]))

    def select_examples(self) -> ExampleView:
        """Returns the rationales that the filters keep, in the questions' order.

        Raises:
            ValueError: Nothing is left, a teacher has written nothing, or a rationale is empty.
        """
        if not self.rationale_paths:
            raise ValueError("data.rationales is empty; name at least one file of rationales")
        examples = self.open_examples(self.rationale_paths)
        self._warn_of_mixed_conditions(set(self.filters.teachers or examples.column("teacher")))
        examples, self.num_left = select_rationales(examples, self.filters, ", ".join(self.rationale_paths))
        return examples

    def _warn_of_mixed_conditions(self, teachers: set[str]) -> None:
        """Warns if some teachers of this comparison were shown the gold answers and others were not."""
        conditions = read_gold_conditions(self.rationale_paths)
        compared = (teachers | self.filters.compared) & set(conditions)
        shown = sorted(teacher for teacher in compared if conditions[teacher])
        if shown and len(shown) < len(compared):
            free = sorted(compared - set(shown))
            warnings.warn(
                f"{', '.join(shown)} wrote with the gold answer in view, {', '.join(free)} without: that alone "
                "may be what differs between them",
                stacklevel=2,
            )

    def setup(self, stage: str) -> None:
        """Reads, and tokenizes what no run has tokenized yet; once."""
        if self.is_set_up:
            return
        self.tokenizer = load_tokenizer(self.tokenizer_name, self.revision)
        check_template_options(self.tokenizer, self.prompt.template_options)
        self.fingerprint = fingerprint_tokenizer(self.tokenizer)
        examples = self.select_examples()
        kept = drop_too_long(examples, self.max_length, self.skip_too_long)
        if len(kept) < len(examples):
            warnings.warn(f"{len(examples) - len(kept)} of {len(examples)} examples are too long", stacklevel=2)
        if not len(kept):
            raise ValueError(f"all {len(examples)} examples are longer than max_length={self.max_length}")
        self.examples = kept
        self.is_set_up = True

    @property
    def pad_id(self) -> int:
        """The padding token, which no loss or attention sees; a tokenizer's own may lie beyond a model's embedding."""
        return 0

    def predict_dataloader(self) -> DataLoader:
        """Every example that is not in `done`, longest first."""
        left = self.examples.where(np.array([identifier not in self.done for identifier in self.examples.column("id")]))
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = PredictionSampler(left.lengths, self.tokens_per_batch, rank, world_size)
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        examples: Any = left
        return DataLoader(examples, batch_sampler=sampler, collate_fn=Collate(self.pad_id, {}), pin_memory=on_gpu)


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
        tokens_per_step: PositiveInt = 2048,
        num_workers: NonNegativeInt = 0,
        samples_per_epoch: PositiveInt | None = None,
        teacher_weights: dict[str, float] | None = None,
        **kwargs,
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the student's own by default.
            questions: A file, `task:NAME:SPLIT[@FOLDER]`, or `microworld:SPLIT:NUMBER:SEED`.
            supervision: label, rationale, or rationale+logits.
            logits: Logit caches, one for each teacher; used with rationale+logits only.
            logits_teacher: Take logits of this teacher whoever wrote the rationale; null takes the writer's.
            validation_fraction: Share of the questions that is held out for `val/` metrics.
            split_seed: Chooses the held-out questions.
            order_seed: Draws, packs and shuffles each epoch's steps.
            tokens_per_step: Budget of an optimizer step, in padded tokens of all processes together. Each computes its
                share in as many micro-batches of `tokens_per_batch` as it takes.
            num_workers: Loader processes.
            samples_per_epoch: Draw so many of each question's rationales anew each epoch; null takes all of them.
            teacher_weights: By teacher, in what proportion its rationales are drawn where a question has several
                teachers; null draws every rationale alike. Needs samples_per_epoch.
            kwargs: See `RationaleDataModule`.
        """
        super().__init__(tokenizer, questions, **kwargs)
        self.supervision, self.logit_paths, self.logits_teacher = supervision, logits or [], logits_teacher
        self.validation_fraction, self.split_seed = validation_fraction, split_seed
        self.order_seed, self.tokens_per_step, self.num_workers = order_seed, tokens_per_step, num_workers
        self.caches: list[LogitCache] = []
        self.cache_of_example: dict[str, LogitCache] = {}
        self.samples_per_epoch, self.teacher_weights = samples_per_epoch, teacher_weights
        self.train_examples: ExampleView
        self.val_examples: ExampleView
        self._train_loader: ResumableLoader | None = None
        self._loader_state: dict | None = None
        if supervision == "rationale+logits" and not self.logit_paths:
            raise ValueError("supervision is rationale+logits, but data.logits names no logit cache")
        if supervision != "rationale+logits" and self.logit_paths:
            warnings.warn(f"data.logits is not read with supervision {supervision}", stacklevel=2)
        if supervision == "label" and self.rationale_paths:
            warnings.warn("data.rationales is not read with supervision label", stacklevel=2)
        if supervision == "label" and self.text_control != AS_WRITTEN:
            raise ValueError(
                "data.answer_position, shuffled and thinking change rationales; supervision label has none"
            )
        if supervision == "label" and self.filters.keep_truncated:
            raise ValueError("data.keep_truncated is about rationales; supervision label has none")
        if supervision == "label" and samples_per_epoch is not None:
            raise ValueError("data.samples_per_epoch draws rationales, of which supervision label has none")
        if teacher_weights is not None:
            if samples_per_epoch is None:
                raise ValueError("data.teacher_weights is for drawing rationales; set data.samples_per_epoch too")
            if wrong := {name: weight for name, weight in teacher_weights.items() if not 0 < weight < math.inf}:
                raise ValueError(f"data.teacher_weights must be above 0 and finite, not {wrong}")

    def select_examples(self) -> ExampleView:
        """Returns the examples to learn from; gold answers if supervision is `label`."""
        if self.supervision == "label":
            examples = self.open_examples(None)
            if (examples.lengths == 0).any():
                question_id = examples.where(examples.lengths == 0)[0].question_id
                raise ValueError(f"question {question_id!r} has no gold answer, which supervision `label` needs")
            return examples
        examples = super().select_examples()
        teachers = set(examples.column("teacher"))
        if self.teacher_weights is not None and teachers != set(self.teacher_weights):
            weighed = sorted(self.teacher_weights)
            raise ValueError(f"data.teacher_weights names {weighed}, but the rationales are of {sorted(teachers)}")
        self._check_teachers(teachers)
        return examples

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
        if self.is_set_up:
            return
        check_processes("data.num_workers", self.num_workers)
        super().setup(stage)
        for cache in self.caches:
            examples = self.examples
            if self.logits_teacher is None:
                examples = examples.where(examples.column("teacher") == cache.description.teacher)
            cache.check(self.tokenizer_name, self.tokenizer, self.prompt.id, examples)
            self.cache_of_example |= {identifier: cache for identifier in examples.column("id")}
        question_ids = self.examples.column("question_id")
        ids = sorted(set(question_ids), key=lambda identifier: hash_text(f"{self.split_seed}{identifier}"))
        held_out = set(ids[: round(self.validation_fraction * len(ids))])
        is_held_out = np.array([question_id in held_out for question_id in question_ids])
        self.val_examples, self.train_examples = self.examples.where(is_held_out), self.examples.where(~is_held_out)
        if not len(self.train_examples):
            raise ValueError(f"validation_fraction={self.validation_fraction} leaves no question to learn from")

    def make_sampler(self, examples: ExampleView, seed: int, draw: EpochDraw | None = None) -> StepSampler:
        """Returns this process's share of the examples' steps."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        budgets = self.tokens_per_step, self.tokens_per_batch
        return StepSampler(examples.lengths, *budgets, seed, rank, world_size, draw)

    def loader_options(self, examples: ExampleView, sampler: StepSampler) -> dict[str, Any]:
        """Returns a loader's arguments; its batches have the teachers' rows if there are caches."""
        assert self.trainer is not None
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        collate = Collate(self.pad_id, self.cache_of_example)
        return loader_options(examples, sampler, collate, self.num_workers, pin_memory=on_gpu)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled steps of the questions that are not held out; after a resume, from where training stands."""
        examples, draw = self.train_examples, None
        if self.samples_per_epoch is not None:
            question_ids, teachers = examples.column("question_id"), examples.column("teacher")
            draw = EpochDraw(question_ids, teachers, self.samples_per_epoch, self.teacher_weights)
        assert self.trainer is not None
        options = self.loader_options(examples, self.make_sampler(examples, self.order_seed, draw))
        self._train_loader = ResumableLoader(self.trainer, **options)
        if self._loader_state is not None:
            self._train_loader.load_state_dict(self._loader_state)
            self._loader_state = None
        return self._train_loader

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leaves a step's micro-batches where they are: the student moves each when its turn comes."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def count_supervised_tokens(self) -> int:
        """Returns the number of completion tokens that an epoch trains on: of the first, where each draws its own."""
        assert self._train_loader is not None and self.trainer is not None
        steps = self._train_loader.batch_sampler.plan(0)[: int(self.trainer.num_training_batches)]
        used = [number for step in steps for number in step]
        lengths = self.train_examples.lengths - self.train_examples.column("num_prompt_tokens").astype(int)
        return int(lengths[used].sum())

    def val_dataloader(self) -> DataLoader | list:
        """The held-out questions, in steps as in training; nothing where none are held out."""
        if not len(self.val_examples):
            return []
        return DataLoader(
            **self.loader_options(self.val_examples, self.make_sampler(self.val_examples, self.split_seed))
        )

    def on_exception(self, exception: BaseException) -> None:
        """Lets Lightning end the training's workers also where a validation is left: it ends those of one stage."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.trainer.training = True

    def state_dict(self) -> dict:
        """Returns the train loader's state, for the checkpoint."""
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Keeps the state until the loader is made.

        Lightning would hand the loader its state only if nothing had asked for the number of batches before.
        """
        self._loader_state = state_dict
