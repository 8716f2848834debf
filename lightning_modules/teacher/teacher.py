"""The teacher under `Trainer.predict`, and how it scores rationales: cache_logits; it answers in annotator.py."""

from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from datamodules.distillation import RationaleDataModule
from datamodules.logit_cache.format import MAX_VOCABULARY, CacheDescription, Kind, Sparsity, Values
from datamodules.model_cards import find_family
from datamodules.model_sources import name_model
from lightning_modules.model.generation import refuse_overflow
from lightning_modules.model.pretrained import (
    Attention,
    Dtype,
    check_model,
    default_dtype,
    identify_weights,
    load_causal_lm,
    read_config,
)
from lightning_modules.model.row_head import RowHead
from lightning_modules.model.sharding import (
    check_strategy,
    count_forwards,
    count_shards,
    is_sharded,
    refuse_sharding,
    run_idle,
    shard_causal_lm,
)
from lightning_modules.model.token_budget import MOST_TOKENS, ModelMemory, fit_token_budget
from lightning_modules.teacher.backends import Source
from lightning_modules.teacher.sparsify import reduce_rows
from lightning_modules.teacher.vllm_backend import VLLMBackend
from lightning_modules.teacher.vllm_rows import refuse_unknown, score_sequences


class TeacherModule(L.LightningModule):
    """Holds a teacher; loads it when the trainer starts, so that a wrong config never waits for it."""

    def __init__(
        self,
        teacher: str,
        revision: str | None = None,
        family: str | None = None,
        dtype: Dtype | None = None,
        keep_layers: list[int] | None = None,
        attention: Attention | None = None,
    ):
        """Stores the settings.

        Args:
            teacher: Hub id, local folder, or GGUF file.
            revision: Commit of a hub model.
            family: The teacher's family, as studies group it; null is what its name tells (`configs/families.yaml`).
            dtype: Of the weights in memory; null is the model card's, or float32 where there is none.
            keep_layers: Keep only these decoder layers.
            attention: How attention is computed: eager, sdpa, or flash_attention_2, which needs its package; null is
                transformers' choice for the architecture.
        """
        super().__init__()
        self.teacher, self.teacher_revision = teacher, revision
        self.family = find_family(teacher, family)
        self.teacher_dtype: Dtype = dtype or default_dtype(teacher)
        self.keep_layers, self.attention = keep_layers, attention
        self.model: Any = None

    @property
    def teacher_name(self) -> str:
        """How artefacts name the teacher."""
        layers = f"-{len(self.keep_layers)}layers" if self.keep_layers is not None else ""
        return name_model(self.teacher) + layers

    @property
    def weights_id(self) -> str:
        """The hub revision or the local weights' hash."""
        return identify_weights(self.teacher, self.teacher_revision)

    @property
    def engine(self) -> VLLMBackend | None:
        """What takes the GPUs in the trainer's stead; None where the trainer's devices compute."""
        return None

    @property
    def source(self) -> Source:
        """The teacher, as backends load it."""
        return Source(self.teacher, self.teacher_revision, self.teacher_dtype, self.keep_layers, self.attention)

    def configure_model(self) -> None:
        """Loads the teacher, once; where the strategy is ModelParallelStrategy, spreads it over all processes.

        Each process gathers one layer at a time (FSDP2) and reads batches of its own.
        """
        if self.model is None:
            self.model = load_causal_lm(*self.source[:4], attention=self.attention)
            self.model.eval().requires_grad_(False)
            if is_sharded(self.trainer):
                shard_causal_lm(self.model, self.trainer)


class LogitScorer(TeacherModule):
    """Reads each (prompt, rationale) once, teacher-forced, and returns what a logit cache keeps."""

    def __init__(
        self,
        teacher: str,
        kind: Kind = "top_k",
        top_k: PositiveInt | None = None,
        min_k: PositiveInt | None = None,
        mass: PositiveFloat | None = None,
        draws: PositiveInt | None = None,
        values: Values | None = None,
        draw_seed: NonNegativeInt | None = None,
        temperatures: list[float] | None = None,
        vllm: VLLMBackend | None = None,
        **kwargs: Any,
    ):
        """Stores the settings. One that the kind would ignore is refused.

        Args:
            teacher: Hub id, local folder, or GGUF file.
            kind: What is kept of each distribution: top_k, its most probable tokens and the mass of the rest;
                adaptive, the fewest tokens that hold a share of the mass; sampled, random draws; hybrid, the most
                probable tokens and draws from the rest; hidden, the last hidden state, exact and large; labels,
                nothing but the log-probability of the text's own token, for data.alignment.kind chunks or data.own.
            top_k: Size of the support; at most, if adaptive; of the exact part, if hybrid. Null is 64, or 16 if hybrid.
            min_k: Smallest support, if adaptive; null is 1.
            mass: Probability that the support holds, if adaptive; null is 0.99.
            draws: Samples of each row, if sampled or hybrid; null is 50, or 16 if hybrid.
            values: uint8 or float16 for log-probabilities, float16, bfloat16 or float32 for hidden states; null is
                uint8, or float16 if hidden.
            draw_seed: Of the draws, if sampled or hybrid; null is 0.
            temperatures: For which training will be exact, beside 1; null is [1, 2], or [1] if sampled, hybrid or vllm.
                Hidden states are exact at any; labels have none.
            vllm: Reads with vLLM in place of transformers: kind top_k at temperature 1, or labels.
            kwargs: See `TeacherModule`.
        """
        super().__init__(teacher, **kwargs)
        self.vllm = vllm
        self.sparsity = Sparsity.resolve(
            kind, top_k=top_k, min_k=min_k, mass=mass, draws=draws, values=values, draw_seed=draw_seed
        )
        self.temperatures = self._choose_temperatures(temperatures)
        if vllm is not None:
            refuse_unknown(self.sparsity, self.temperatures)
        self._head: RowHead | None = None
        self._forwards_left = self._num_padded = 0

    def _choose_temperatures(self, given: list[float] | None) -> tuple[float, ...]:
        kind = self.sparsity.kind
        if kind in ("hidden", "labels"):
            if given is not None:
                why = "it is exact at any" if kind == "hidden" else "it has no distributions"
                raise ValueError(f"model.temperatures is given, but kind {kind} ignores it; {why}")
            return ()
        default = [1.0] if self.sparsity.draws is not None or self.vllm is not None else [1.0, 2.0]
        if given is not None and len({*given}) < len(given):
            raise ValueError(f"model.temperatures is {given}: one is there twice")
        temperatures = tuple(sorted({1.0, *(default if given is None else given)}))
        if not all(0 < temperature < float("inf") for temperature in temperatures):
            raise ValueError(f"temperatures must be above 0 and finite, not {given}")
        if self.sparsity.draws is not None and temperatures != (1.0,):
            raise ValueError(f"model.temperatures is {given}, but kind {kind} is unbiased at temperature 1 only")
        return temperatures

    @property
    def engine(self) -> VLLMBackend | None:
        """The setting `vllm`."""
        return self.vllm

    def describe(self, fingerprint: str, prompt_id: str, vocabulary: int) -> CacheDescription:
        """Returns what the rows depend on. Raises a ValueError if the vocabulary is larger than a cache's ids."""
        if vocabulary > MAX_VOCABULARY:
            raise ValueError(f"{self.teacher}: a vocabulary of {vocabulary}; a cache holds {MAX_VOCABULARY} at most")
        return CacheDescription(
            teacher=self.teacher_name,
            revision=self.weights_id,
            tokenizer_fingerprint=fingerprint,
            prompt_id=prompt_id,
            vocabulary=vocabulary,
            temperatures=self.temperatures,
            dtype=self.teacher_dtype,
            sparsity=self.sparsity,
            attention=self.attention,
        )

    def check(self, data: RationaleDataModule) -> None:
        """Raises a ValueError if the teacher cannot be loaded, or an example may leave its context."""
        longest, what = data.encoding.max_length, "data.encoding.max_length"
        if self.vllm is not None:
            longest, what = longest + 1, "data.encoding.max_length and the token that vLLM generates"
        highest = data.examples.store.highest_id
        check_model(self.teacher, self.teacher_revision, self.keep_layers, longest, what, highest)
        if self.vllm is not None:
            self.vllm.check(self.source, longest, highest)

    def setup(self, stage: str) -> None:
        """Decides how much is read at a time, and how often each process must run a sharded teacher."""
        if self.vllm is not None:
            refuse_sharding(self.trainer, "spread one with model.vllm.tensor_parallel_size")
            self.vllm.place(self.trainer)
            # It divides them itself.
            self.trainer.datamodule.token_budget = self.trainer.datamodule.batches.choose(MOST_TOKENS)
        check_strategy(self.trainer)
        if self.vllm is None:
            count = partial(ModelMemory.count_reading, shards=count_shards(self.trainer))
            fit_token_budget(self.trainer, count, *self.source)
        if is_sharded(self.trainer):
            if self.sparsity.kind == "hidden":
                raise ValueError("kind hidden needs the head's weights whole; choose another strategy than sharding")
            self._forwards_left = count_forwards(self.trainer, len(self.trainer.datamodule.predict_dataloader()))

    def catch_up(self) -> None:
        """Runs a sharded teacher for the processes that still have batches; call when this one has none left."""
        run_idle(self.model, self._forwards_left, self.device)
        self._forwards_left = 0

    def configure_model(self) -> None:
        """Loads the teacher, once, and finds its head."""
        if self.vllm is not None:
            head = read_config(self.teacher, self.teacher_revision, self.keep_layers).vocab_size
            self._num_padded = max(0, head - len(self.trainer.datamodule.tokenizer))
            self.vllm.keep_log_probs(1 if self.sparsity.top_k is None else self.sparsity.top_k + self._num_padded)
            self.vllm.load(self.source, None)
            return
        super().configure_model()
        if self._head is None:
            self._head = RowHead(self.model, is_sharded(self.trainer))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns (example id, rows as `logit_codec` takes them) for each example of the batch."""
        data = self.trainer.datamodule
        made = self.describe(data.fingerprint, data.prompt.id, len(data.tokenizer))
        self._forwards_left -= is_sharded(self.trainer)
        return self.score(batch, made)

    def score(self, batch: dict[str, Any], made: CacheDescription) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns (example id, rows) for each example of a batch of `collate_examples`.

        Raises:
            ValueError: Hidden states are wanted, but the teacher's logits are not those of its head alone; or these are
                not finite.
        """
        counts = torch.bincount(batch["rows"] // batch["input_ids"].shape[1]).tolist()
        if self.vllm is not None:
            padded = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
            sequences = [ids[mask].tolist() for ids, mask in padded]
            prompts = [len(ids) - count for ids, count in zip(sequences, counts, strict=True)]
            scored = score_sequences(self.vllm.score, sequences, prompts, made, self._num_padded)
            return list(zip(batch["example_ids"], scored, strict=True))
        assert self._head is not None
        found = self._head.run(batch)
        if made.sparsity.kind == "hidden" and self._head.settings is None:
            raise ValueError(f"{self.teacher}: kind hidden needs logits that are the head of the last hidden state")
        reduced = reduce_rows(found.iterate_logits(), batch["labels"], made, batch["example_ids"], counts)
        for rows in reduced:
            refuse_overflow(torch.from_numpy(rows["label_log_prob"]), self.model)
        if made.sparsity.kind == "hidden":
            for rows, hidden_ND in zip(reduced, found.hidden_ND.float().cpu().split(counts), strict=True):
                rows["hidden"] = hidden_ND.numpy()
        return list(zip(batch["example_ids"], reduced, strict=True))

    def export_head(self) -> dict[str, Any] | None:
        """Returns the output head that turns cached hidden states into logits; None if no hidden states are kept."""
        if self.sparsity.kind != "hidden":
            return None
        assert self._head is not None
        return self._head.export()
