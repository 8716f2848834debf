"""The data modules that turn questions and rationales into batches, for scoring by a teacher and for training."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from datamodules.batches.loading import Collate, ResumableLoader, check_processes, loader_options
from datamodules.batches.mixing import JoinedExamples, MixedSampler
from datamodules.batches.packing import (
    CPU_TOKENS,
    BatchSize,
    EpochDraw,
    PredictionSampler,
    StepSampler,
    TrainingBatches,
)
from datamodules.examples.selection import RationaleFilters, ValidationSplit
from datamodules.examples.source import ExampleEncoding, ExampleSource
from datamodules.examples.store import ExampleView
from datamodules.examples.tokenization import Example, Supervision
from datamodules.files.atomic import hash_json
from datamodules.logit_cache.aligned import AlignedCache, AlignmentSettings
from datamodules.logit_cache.matching import (
    align_caches,
    assign_caches,
    assign_mixtures,
    assign_one_teacher,
    measure_coverage,
    open_caches,
    open_others,
    require_caches,
)
from datamodules.logit_cache.mixture import RowReader
from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.row_selection import RowKind, select_rows
from datamodules.own_text import OwnExamples, OwnText, read_own_text
from datamodules.rationales.controls import AS_WRITTEN, DistillationControls, TextControls
from datamodules.rationales.shown import check_shown, read_shown
from datamodules.tasks.prompts import find_privilege


class ExampleDataModule(L.LightningDataModule):
    """Pairs questions with teachers' rationales, as examples of one tokenizer.

    Attributes:
        examples: All, after `setup`.
    """

    def __init__(
        self,
        tokenizer: str,
        questions: str,
        rationales: list[str] | None = None,
        prompt: str = "instruction",
        limit: PositiveInt | None = None,
        limit_seed: NonNegativeInt | None = None,
        encoding: ExampleEncoding = ExampleEncoding(),  # noqa: B008 (frozen)
        filters: RationaleFilters = RationaleFilters(),  # noqa: B008 (frozen)
        controls: TextControls = TextControls(),  # noqa: B008 (frozen)
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the model's own by default.
            questions: A file, `task:NAME:SPLIT[:LANGUAGE][@FOLDER]`, or `microworld:SPLIT:NUMBER:SEED[:LANGUAGE]`.
            rationales: Rationale stores (parquet) and published collections (jsonl, jsonl.gz).
            prompt: Name of the prompt that the student reads: cot, few_shot, direct, instruction or plain.
            limit: Use only so many questions.
            limit_seed: Draws the questions of `limit`: of one seed, a smaller limit's are among a larger one's; null
                takes the first.
            encoding: How they are tokenized.
            filters: Which rationales are used.
            controls: What is changed in their texts.
        """
        super().__init__()
        self.source = ExampleSource(
            tokenizer, questions, rationales or [], prompt, limit, limit_seed, encoding, filters, controls
        )
        self.prompt, self.encoding = self.source.prompt, encoding
        self.examples: ExampleView
        self.is_set_up = False


class RationaleDataModule(ExampleDataModule):
    """Pairs questions with teachers' rationales; `predict` hands out every example that is not `done` once.

    This is what a teacher reads to score its own, or another's, rationales.

    Attributes:
        done: Ids of examples to leave out.
        token_budget: Of a batch, in padded tokens; the module that reads sets it where a GPU's memory says it.
    """

    def __init__(
        self,
        tokenizer: str,
        questions: str,
        rationales: list[str] | None = None,
        prompt: str = "instruction",
        batches: BatchSize = BatchSize(),  # noqa: B008 (frozen)
        shown_rationales: str | None = None,
        **kwargs: Any,
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the model's own by default.
            questions: A file, `task:NAME:SPLIT[:LANGUAGE][@FOLDER]`, or `microworld:SPLIT:NUMBER:SEED[:LANGUAGE]`.
            rationales: Rationale stores (parquet) and published collections (jsonl, jsonl.gz).
            prompt: Name of the prompt that the student reads: cot, few_shot, direct, instruction or plain; with the
                suffix _with_gold it shows this teacher the gold answer, too, with _with_rationale a rationale.
            batches: How much is computed at a time.
            shown_rationales: Of such a prompt: of each question the first right one in this file, or else the first.
            kwargs: See `ExampleDataModule`.
        """
        super().__init__(tokenizer, questions, rationales, prompt, **kwargs)
        check_shown("data.prompt", prompt, "data.shown_rationales", shown_rationales)
        self.batches, self.shown_rationales = batches, shown_rationales
        self.token_budget = batches.choose(CPU_TOKENS)
        self.done: set[str] = set()
        # A process may have nothing left to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def setup(self, stage: str) -> None:
        """Reads, and tokenizes what no run has tokenized yet; once."""
        if self.is_set_up:
            return
        self.tokenizer, self.fingerprint = self.source.tokenizer, self.source.fingerprint
        if self.shown_rationales is not None:
            shown = read_shown(self.shown_rationales, self.source.questions)
            self.prompt = self.source.prompt = replace(self.prompt, shown=shown)
        self.examples = self.source.read_rationales()
        self.is_set_up = True

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every example that is not in `done`, longest first."""
        left = self.examples.where(np.array([identifier not in self.done for identifier in self.examples.column("id")]))
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = PredictionSampler(left.lengths, self.token_budget, rank, world_size)
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        examples: Any = left
        return DataLoader(examples, batch_sampler=sampler, collate_fn=Collate({}), pin_memory=on_gpu)


class DistillationDataModule(ExampleDataModule):
    """What a student learns from: gold labels, rationales, or rationales with the teacher's cached logits.

    Attributes:
        train_examples: What is learnt from, after `setup`.
        val_examples: What is held out, likewise.
        caches: The logit caches that are read, likewise.
        coverage: Share of the completions' tokens in each class of alignment, likewise; none without an alignment.
        row_shares: Share of them where two teachers' most probable tokens differ, agree, or are not both known; none
            without `rows`.
        own_examples: What the student wrote itself and learns from, likewise; None if nothing.
        token_budget: Of a micro-batch, in padded tokens; the student sets it where a GPU's memory says it.
    """

    def __init__(
        self,
        tokenizer: str,
        questions: str,
        supervision: Supervision = "rationale",
        rationales: list[str] | None = None,
        logits: list[str] | None = None,
        alignment: AlignmentSettings = AlignmentSettings(),  # noqa: B008 (frozen)
        rows: RowKind | None = None,
        rows_against: list[str] | None = None,
        controls: DistillationControls = DistillationControls(),  # noqa: B008 (frozen)
        batches: TrainingBatches = TrainingBatches(),  # noqa: B008 (frozen)
        validation: ValidationSplit = ValidationSplit(),  # noqa: B008 (frozen)
        own: OwnText = OwnText(),  # noqa: B008 (frozen)
        **kwargs: Any,
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the student's own by default.
            questions: A file, `task:NAME:SPLIT[:LANGUAGE][@FOLDER]`, or `microworld:SPLIT:NUMBER:SEED[:LANGUAGE]`.
            supervision: label, rationale, or rationale+logits.
            rationales: Rationale stores (parquet) and published collections (jsonl, jsonl.gz).
            logits: Logit caches of each teacher, one or more, of different texts; used with rationale+logits only.
            alignment: How those of teachers with another tokenizer than the student's are used.
            rows: Take the teacher's distribution only where its most probable token and that of `rows_against` are
                `divergent`, or `agreeing`; elsewhere the text alone teaches. Null takes it everywhere.
            rows_against: Logit caches of one other teacher, of the same texts.
            controls: What is changed in their texts, and whose logits are taken.
            batches: What is read in which order, and how much at a time.
            validation: Which questions are held out.
            own: What the student wrote itself, and how much it learns from that.
            kwargs: See `ExampleDataModule`.
        """
        super().__init__(tokenizer, questions, rationales, controls=controls, **kwargs)
        if (shown := find_privilege(prompt := self.prompt.name)) is not None:
            raise ValueError(f"data.prompt {prompt!r} would show the student {shown}; choose another")
        self.supervision, self.logit_paths, self.controls = supervision, logits or [], controls
        self.alignment, self.rows, self.rows_against = alignment, rows, rows_against or []
        self.batches, self.validation, self.own = batches, validation, own
        self.token_budget = batches.choose(CPU_TOKENS)
        self.train_examples: ExampleView
        self.val_examples: ExampleView
        self.caches: Sequence[LogitCache | AlignedCache] = []
        self.cache_of_example: dict[str, RowReader] = {}
        self.coverage: dict[str, float] = {}
        self.row_shares: dict[str, float] = {}
        self.own_examples: OwnExamples | None = None
        self._train_loader: ResumableLoader | None = None
        self._loader_state: dict[str, Any] | None = None
        self._check_supervision()

    def _check_supervision(self) -> None:
        """Refuses, or warns of, settings that the supervision would ignore."""
        if not self.own.taught_share and (self.source.rationales or self.logit_paths):
            raise ValueError(
                "data.own.mix=0 takes nothing of a teacher's text; leave data.rationales and data.logits out"
            )
        if self.supervision == "rationale+logits" and not self.logit_paths:
            raise ValueError("supervision is rationale+logits, but data.logits names no logit cache")
        if self.supervision != "rationale+logits" and self.logit_paths:
            warnings.warn(f"data.logits is not read with supervision {self.supervision}", stacklevel=3)
        if self.controls.logit_weights is not None:
            name = "data.controls.logit_weights"
            if self.supervision != "rationale+logits":
                raise ValueError(f"{name} would be ignored: supervision {self.supervision} has no logits")
            if self.alignment.kind == "chunks":
                raise ValueError(f"data.alignment.kind chunks has no distributions that {name} could mix")
        if self.supervision != "rationale+logits" and self.own.logits is None and self.alignment.kind != "refuse":
            raise ValueError(f"data.alignment is about logits; supervision {self.supervision} has none; leave it out")
        if (self.rows is None) != (not self.rows_against):
            raise ValueError("data.rows says which rows teach, data.rows_against which caches decide it; give both")
        if self.rows is not None and self.supervision != "rationale+logits":
            raise ValueError(f"data.rows would be ignored: supervision {self.supervision} has no logits")
        if self.rows is not None and self.controls.logit_weights is not None:
            raise ValueError(
                "data.rows compares one teacher with another, data.controls.logit_weights mixes several; leave one"
            )
        if self.supervision != "label":
            return
        if self.source.rationales:
            warnings.warn("data.rationales is not read with supervision label", stacklevel=3)
        if self.controls.identity != AS_WRITTEN.identity:
            raise ValueError("data.controls change rationales; supervision label has none")
        if self.source.filters.keep_truncated:
            raise ValueError("data.filters.keep_truncated is about rationales; supervision label has none")
        if self.source.filters.without is not None:
            raise ValueError("data.filters.without is about rationales; supervision label has none")
        if self.batches.samples_per_epoch is not None:
            raise ValueError("data.batches.samples_per_epoch draws rationales, of which supervision label has none")

    def setup(self, stage: str) -> None:
        """Reads, tokenizes, checks the caches, and splits by question; once."""
        if self.is_set_up:
            return
        check_processes("data.batches.num_workers", self.batches.num_workers or 0)
        self.tokenizer = self.source.tokenizer
        if self.own.rationales is not None:
            self.own_examples = read_own_text(self.own, self.source, self.alignment)
        if self.own_examples is not None and not self.own.taught_share:
            self.examples = self.train_examples = self.val_examples = self.own_examples.examples[:0]
        else:
            self._read_taught()
        self.is_set_up = True

    def _read_taught(self) -> None:
        """Reads what teachers wrote, or the gold labels."""
        if self.supervision == "rationale+logits":
            require_caches(self.logit_paths)
        examples = self.source.read_labels() if self.supervision == "label" else self.source.read_rationales()
        teachers, weights = set(examples.column("teacher")), self.batches.teacher_weights
        if weights is not None and teachers != set(weights):
            named = f"{sorted(weights)}, but the rationales are of {sorted(teachers)}"
            raise ValueError(f"data.batches.teacher_weights names {named}")
        if self.supervision == "rationale+logits":
            whose = self.controls.logits_teacher
            mixed = self.controls.logit_weights
            caches = open_caches(self.logit_paths, whose, teachers, self.source.rationales, mixed)
            others = open_others(self.rows_against, caches)
            aligned = align_caches([*caches, *others], self.alignment, examples, self.source)
            self.caches = aligned[: len(caches)]
            if mixed is None:
                self.cache_of_example |= assign_caches(self.caches, whose, examples, self.source)
            else:
                self.cache_of_example |= assign_mixtures(self.caches, mixed, examples, self.source)
            self.coverage = measure_coverage(self.cache_of_example, examples)
            if self.rows is not None:
                against = assign_one_teacher(aligned[len(caches) :], examples, self.source)
                self.cache_of_example, self.row_shares = select_rows(
                    self.rows, self.cache_of_example, against, examples
                )
        self.examples = examples
        self.train_examples, self.val_examples = self.validation.split(examples, self.source.clusters)

    @cached_property
    def texts_hash(self) -> str:
        """A hash of the texts that are learnt from, after `setup`; whose they are plays no part."""
        return hash_json(self.train_examples.column("text_hash").tolist())

    @property
    def softens(self) -> bool:
        """Whether sparse rows reach the loss softened, one by one for each stored temperature."""
        return self.controls.logit_weights is not None or self.rows is not None

    @property
    def shares(self) -> dict[str, float]:
        """The shares of the completions' tokens that are logged, by the metrics' names."""
        named = {"align": self.coverage, "rows": self.row_shares}
        return {f"{group}/{name}": share for group, shares in named.items() for name, share in shares.items()}

    def make_sampler(
        self, examples: ExampleView, seed: int, draw: EpochDraw | None = None, share: float = 1.0
    ) -> StepSampler:
        """Returns this process's share of the examples' steps, which have a share of a step's budget."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        budgets = max(1, round(share * self.batches.tokens_per_step)), self.token_budget
        return StepSampler(examples.lengths, *budgets, seed, rank, world_size, draw)

    def _make_train_sampler(self, draw: EpochDraw | None) -> StepSampler | MixedSampler:
        """Returns this process's share of the training's steps; see `own`."""
        own, share, seed = self.own_examples, self.own.taught_share, self.batches.order_seed
        taught = self.make_sampler(self.train_examples, seed, draw, share) if share else None
        if taught is not None and own is None and not self.own.first_step:
            return taught
        drawn = None if own is None else self.make_sampler(own.examples, seed, share=1 - share)
        return MixedSampler(taught, drawn, len(self.train_examples), self.own.first_step)

    def loader_options(self, examples: Sequence[Example], sampler: StepSampler | MixedSampler) -> dict[str, Any]:
        """Returns a loader's arguments; its batches have the teachers' rows if there are caches."""
        assert self.trainer is not None
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        own = self.own_examples
        collate = Collate(self.cache_of_example)
        if own is not None:
            collate = Collate(self.cache_of_example | own.cache_of_example, own.log_probs)
        return loader_options(examples, sampler, collate, self.batches.num_workers, pin_memory=on_gpu)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled steps of the questions that are not held out; after a resume, from where training stands."""
        examples, draw = self.train_examples, None
        if (num_samples := self.batches.samples_per_epoch) is not None:
            question_ids, teachers = examples.column("question_id"), examples.column("teacher")
            draw = EpochDraw(question_ids, teachers, num_samples, self.batches.teacher_weights)
        own = self.own_examples
        everything = examples if own is None else JoinedExamples(examples, own.examples)
        options = self.loader_options(everything, self._make_train_sampler(draw))
        assert self.trainer is not None
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
        views = [self.train_examples, *([] if self.own_examples is None else [self.own_examples.examples])]
        lengths = [view.lengths - view.column("num_prompt_tokens").astype(int) for view in views]
        return int(np.concatenate(lengths)[used].sum())

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The held-out questions, in steps as in training; nothing where none are held out."""
        if not len(self.val_examples):
            return []
        return DataLoader(
            **self.loader_options(self.val_examples, self.make_sampler(self.val_examples, self.validation.seed))
        )

    def on_exception(self, exception: BaseException) -> None:
        """Lets Lightning end the training's workers also where a validation is left: it ends those of one stage."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.trainer.training = True

    def state_dict(self) -> dict[str, Any]:
        """Returns the train loader's state, for the checkpoint."""
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the loader is made.

        Lightning would hand the loader its state only if nothing had asked for the number of batches before.
        """
        self._loader_state = state_dict
