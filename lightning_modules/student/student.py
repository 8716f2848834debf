"""The student: a causal language model trained on completions, with a teacher's distributions where there are any."""

import math
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning as L
import torch
from einops import rearrange
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from datamodules.distillation import DistillationDataModule
from datamodules.examples.encoding import find_end_tokens
from datamodules.files.atomic import atomic_path, write_sealed
from datamodules.files.seals import MANIFEST, describe_files
from lightning_modules.model.adapters import Adapter, add_adapter, check_adapter
from lightning_modules.model.output_head import (
    HeadSettings,
    find_head_settings,
    get_head,
    needs_padding_mask,
    run_body,
    try_kernels,
)
from lightning_modules.model.pretrained import Attention, Dtype, add_end_ids, check_model, default_dtype, load_causal_lm
from lightning_modules.model.sharding import (
    ShardedStrategy,
    call_inside,
    check_strategy,
    count_shards,
    gather_state,
    is_sharded,
    shard_causal_lm,
    taking_turns,
    whole,
)
from lightning_modules.model.stored_weights import find_loading_dtype
from lightning_modules.model.token_budget import ModelMemory, fit_token_budget
from lightning_modules.run.extent import check_extent
from lightning_modules.student.cached_targets import TeacherHead, build_target, check_cache, load_teacher_head
from lightning_modules.student.model_card import NAME as CARD
from lightning_modules.student.model_card import describe_student
from lightning_modules.student.optimization import build_optimizer, find_loss_divisor
from lightning_modules.student.own_text import OWN_LOSS, add_own_statistics, add_sums, check_own_text, list_metrics
from lightning_modules.student.rounding import FakeQuant, check_rounding, round_while_learning
from lightning_modules.student.start import StudentStart, change_start, check_start
from lightning_modules.student.step_sums import StepSums
from losses.distillation import DistillationLoss, LossSums
from losses.targets import Target

# What these precisions make of the weights. They are loaded so, since a checkpoint is read into what was loaded.
TRUE_PRECISIONS: dict[str, Any] = {"bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}


class DistillationModule(L.LightningModule):
    """Trains a student with the distillation loss, normalised by the global sum of token weights.

    A batch is a process's share of one optimizer step, as micro-batches. Each contributes its weighted *sum*; the
    gradient is divided by the weights of all micro-batches and all processes just before the optimizer's step. So the
    result does not depend on how a step is divided.
    """

    def __init__(
        self,
        student: str,
        loss: DistillationLoss = DistillationLoss(),  # noqa: B008 (frozen)
        revision: str | None = None,
        dtype: Dtype | None = None,
        keep_layers: list[int] | None = None,
        start: StudentStart = StudentStart(),  # noqa: B008 (frozen)
        learning_rate: PositiveFloat = 1e-4,
        weight_decay: NonNegativeFloat = 0.0,
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup_ratio: ClosedUnitInterval = 0.05,
        fused_head: bool = True,
        adapter: Adapter | None = None,
        export: Literal["merged", "adapter"] | None = None,
        activation_checkpointing: bool = False,
        compile: bool = False,
        attention: Attention | None = None,
        own_loss: DistillationLoss = OWN_LOSS,
        own_cross_entropy: bool = False,
        schedule_steps: PositiveInt | None = None,
        fake_quant: FakeQuant | None = None,
    ):
        """Stores the settings; the student is loaded when the trainer starts.

        Args:
            student: Hub id, local folder, or GGUF file.
            loss: The mixture, its divergence and its weights.
            revision: Commit of a hub model.
            dtype: Of the weights in memory; null is float32, or what a true half `trainer.precision` says, or, for the
                frozen weights under an adapter, the model card's.
            keep_layers: Keep only these decoder layers: a smaller student of the same family.
            start: What is changed in its weights before it is trained.
            learning_rate: AdamW's peak learning rate.
            weight_decay: AdamW's, on matrices only.
            schedule: After the warm-up.
            warmup_ratio: Share of all steps over which the learning rate rises.
            fused_head: Compute the loss from hidden states, chunk by chunk. Off keeps all logits: the same loss in
                several times the memory, to check against.
            adapter: Train low-rank matrices (LoRA) in place of the weights; null trains the weights.
            export: With an adapter: the whole model, merged, which null is, or the adapter alone.
            activation_checkpointing: Keep only each decoder block's input for the backward pass, and compute the rest
                again: less memory for one more forward pass.
            compile: Compile each decoder block (torch.compile); the CPU needs a C++ compiler.
            attention: How attention is computed: eager, sdpa, or flash_attention_2, which needs its package; null is
                transformers' choice for the architecture.
            own_loss: The mixture for what the student wrote itself, see `data.own`; its tokens are all the rationale's.
            own_cross_entropy: Let own_loss.kl_weight be below 1, which teaches the student to write what it wrote.
            schedule_steps: Over how many optimizer steps the schedules go, if this training is a part of them (a
                round); null is its own.
            fake_quant: Learn for few bits: compute with weights rounded as a GGUF file of this type rounds them, and
                take their gradient for the weights' own, which are kept and exported; null rounds nothing.
        """
        super().__init__()
        for name, value in {"learning_rate": learning_rate, "weight_decay": weight_decay}.items():
            if not math.isfinite(value):
                raise ValueError(f"model.{name} must be finite, not {value}")
        self.student, self.student_revision, self.student_dtype = student, revision, dtype
        self.keep_layers, self.start = keep_layers, start
        self.loss, self.fused_head, self.attention = loss, fused_head, attention
        self.own_loss, self.own_cross_entropy, self.schedule_steps = own_loss, own_cross_entropy, schedule_steps
        # The optimizer's state holds them, and no checkpoint may hold jsonargparse's own types.
        self.learning_rate, self.weight_decay = float(learning_rate), float(weight_decay)
        self.schedule, self.warmup_ratio = schedule, warmup_ratio
        if loss.kernel == "triton" and not fused_head:
            raise ValueError("model.loss.kernel triton would be ignored with model.fused_head=false; leave one out")
        if export is not None and adapter is None:
            raise ValueError(f"model.export {export} is given, but there is no model.adapter; leave it out")
        if export == "adapter" and keep_layers is not None:
            raise ValueError("model.export adapter would not say which layers were kept; export merged")
        if adapter is not None and adapter.quantize and compile:
            raise ValueError("model.compile does not go with model.adapter.quantize; leave one out")
        check_rounding(fake_quant, adapter is not None, compile)
        self.fake_quant, self.adapter, self.export_form = fake_quant, adapter, export or "merged"
        self.activation_checkpointing, self.compile_blocks = activation_checkpointing, compile
        # The frozen weights are not in its checkpoints.
        self.strict_loading = adapter is None
        self.model: Any = None
        self._head_settings: HeadSettings | None = None
        self._needs_mask, self._divisor = True, 1.0
        self.step_sums: StepSums
        self._teacher_head: TeacherHead | None = None
        self._own_head: TeacherHead | None = None
        self._has_checked_target = False
        self._val_sums: dict[str, Tensor] = {}
        self._weights_dtype: Dtype = dtype or "float32"
        self._is_sharded = False

    def setup(self, stage: str) -> None:
        """Learns whether the trainer's strategy spreads the student's weights over the processes."""
        self.check_trainer(self.trainer)
        self._is_sharded = is_sharded(self.trainer)
        self._divisor = find_loss_divisor(self.trainer.precision, self.trainer.datamodule.batches.tokens_per_step)
        if self.student_dtype is None:
            frozen = "float32" if self.adapter is None else default_dtype(self.student)
            self._weights_dtype = TRUE_PRECISIONS.get(self.trainer.precision, frozen)
        source = (self.student, self.student_revision, self._weights_dtype, self.keep_layers, self.attention)
        count = partial(ModelMemory.count_training, trains_all=self.adapter is None, shards=count_shards(self.trainer))
        count = partial(count, recomputes=self.activation_checkpointing)
        fit_token_budget(self.trainer, count, *source, is_mixed=self.trainer.precision.endswith("mixed"))

    def configure_model(self) -> None:
        """Loads the student, once, and makes it what is trained: see `adapter`, `compile`, `trainer.strategy`."""
        if self.model is None:
            # A changed student is whole, in float32, until it is spread.
            with taking_turns(self.trainer) if self._is_sharded and self.start.changes else nullcontext():
                self._load()

    def _load(self) -> None:
        quantize_on = self.trainer.strategy.root_device if self.adapter and self.adapter.quantize else None
        source, dtype = (self.student, self.student_revision), self._weights_dtype
        is_plain = self.adapter is None and not self.start.changes
        loaded = find_loading_dtype(*source, dtype) if self._is_sharded and is_plain else dtype
        self.model = model = load_causal_lm(*source, loaded, self.keep_layers, quantize_on, self.attention)
        change_start(model, self.start, self.student)
        round_while_learning(model, self.fake_quant)
        model.config.use_cache = False
        if self.fused_head:
            self._head_settings = find_head_settings(model)
            self._needs_mask = self._head_settings is None or needs_padding_mask(model)
        if self.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.adapter is not None:
            done = add_adapter(model, self.adapter, self.student, self.student_revision)
            if self._head_settings is not None and type(model.get_output_embeddings()) is not nn.Linear:
                raise ValueError("model.adapter.target_modules has the output head; that needs model.fused_head=false")
            rank_zero_only(print)(f"{self.student} in {self._weights_dtype}; {done}")
        if self.compile_blocks:
            for layer in model.base_model.layers:
                # Not the module: hooks that gather its weights stay outside.
                layer.forward = torch.compile(layer.forward, dynamic=True)
        if self._is_sharded:
            shard_causal_lm(model, self.trainer, None if loaded == dtype else getattr(torch, dtype))

    def check_trainer(self, trainer: L.Trainer) -> None:
        """Raises a ValueError if a precision, a strategy or a length does not go with the student's settings."""
        check_extent(trainer)
        check_strategy(trainer)
        if is_sharded(trainer) and not isinstance(trainer.strategy, ShardedStrategy):
            raise ValueError("trainer.strategy: a student is spread over processes by fsdp2, not by another strategy")
        if is_sharded(trainer) and self.fake_quant is not None:
            raise ValueError("trainer.strategy: model.fake_quant does not go with fsdp2; use ddp")
        precision, dtype = trainer.precision, self.student_dtype
        forced = TRUE_PRECISIONS.get(precision, dtype)
        if dtype not in (None, forced):
            raise ValueError(f"model.dtype {dtype} is given, but trainer.precision {precision} makes it {forced}")
        if precision.endswith("mixed") and self.adapter is None and dtype not in (None, "float32"):
            raise ValueError(
                f"trainer.precision {precision} trains float32 weights, but model.dtype is {dtype}; leave it out, or "
                "use a true precision"
            )
        if self.adapter is not None and self.adapter.quantize and is_sharded(trainer):
            raise ValueError("trainer.strategy: 4-bit weights are not sharded; use ddp, or no model.adapter.quantize")

    def check(self, data: DistillationDataModule) -> None:
        """Refuses data that does not fit the loss or the student, before anything is written.

        Raises:
            ValueError: Logits without a weight, a weight without logits, a temperature that was not cached, or
                examples longer than the context.
        """
        check_own_text(self, data)
        has_logits = data.supervision == "rationale+logits"
        if has_logits and not self.loss.needs_teacher:
            raise ValueError(
                "supervision is rationale+logits, but model.loss.kl_weight is 0; the logits would be ignored"
            )
        if not has_logits and self.loss.needs_teacher:
            weight, kind = self.loss.kl_weight, data.supervision
            raise ValueError(f"model.loss.kl_weight is {weight}, but supervision {kind} has no logits; set it to 0")
        for cache in data.caches:
            check_cache(self.loss, cache, data.softens)
        check_start(self.start, self.student, self.student_revision, self.adapter is not None)
        if self.adapter is not None:
            check_adapter(self.adapter, self.student)
        if self.compile_blocks and not torch.cuda.is_available() and which(os.environ.get("CXX", "g++")) is None:
            raise ValueError("model.compile needs a C++ compiler on a CPU; install g++, or name one in CXX")
        if data.supervision == "label" and not self.loss.supervises_answers:
            raise ValueError("supervision label supervises only the answer, and model.loss.answer_weight is 0")
        longest, highest = (data.encoding.max_length, "data.encoding.max_length"), data.train_examples.store.highest_id
        check_model(self.student, self.student_revision, self.keep_layers, *longest, highest)

    def list_metrics(self, data: DistillationDataModule) -> list[str]:
        """Returns the names of what a training on this data logs."""
        return list_metrics(self.loss, data)

    def on_fit_start(self) -> None:
        """Starts in training mode, whatever mode the student was saved in."""
        self.model.train()
        try_kernels("torch" if self._head_settings is None else self.loss.kernel, self.device)
        self._total_steps = self.schedule_steps or int(self.trainer.estimated_stepping_batches)
        data = self.trainer.datamodule
        if data.caches:
            self._teacher_head = load_teacher_head(data.caches[0], self.device)
        if data.own_examples is not None:
            self._own_head = load_teacher_head(data.own_examples.caches[0], self.device)

    def compute_loss(self, batch: dict[str, Any]) -> LossSums:
        """Returns the loss sums over the batch's supervised tokens, at the training's present progress."""
        chosen = self.own_loss if "drawn" in batch else self.loss
        loss = chosen.at(min(self.global_step / self._total_steps, 1.0))
        target = self._build_target(batch) if loss.mixture.kl_weight > 0 else None
        inputs = (batch["labels"], batch["is_answer"], target)
        if self._head_settings is None:
            output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            logits_NV = rearrange(output.logits, "b s v -> (b s) v")[batch["rows"]]
            return add_own_statistics(loss(logits_NV, *inputs), batch, logits_NV, lambda logits: logits, target)
        settings = self._head_settings

        def forward() -> LossSums:
            hidden = run_body(self.model, batch["input_ids"], batch["attention_mask"] if self._needs_mask else None)
            hidden_ND = rearrange(hidden, "b s d -> (b s) d")[batch["rows"]]
            head = get_head(self.model, settings)
            sums = loss.from_hidden(hidden_ND, head, *inputs)
            return add_own_statistics(sums, batch, hidden_ND, head.project, target)

        return call_inside(self.model, forward)

    def _build_target(self, batch: dict[str, Any]) -> Target:
        """Returns the batch's teacher rows; looks at every value of the first batch's."""
        head, log_then_N = self._teacher_head, None
        if "drawn" in batch:
            head, log_then_N = self._own_head, batch["drawn"].tensors["log_probs"]
        target = build_target(batch["target"].tensors, batch["temperatures"], head, log_then_N)
        if not self._has_checked_target:
            target.check(self.model.config.get_text_config().vocab_size)
            self._has_checked_target = True
        return target

    def optimizer_zero_grad(self, *args: Any) -> None:
        """Does nothing: Lightning calls it after `training_step`, in which a step's gradient begins."""

    def training_step(self, batch: list[dict[str, Any]], batch_idx: int) -> Tensor:
        """Adds up the gradients of all micro-batches but the last, whose weighted sum it returns."""
        self.zero_grad()
        self.step_sums = StepSums(batch, self.trainer)
        *earlier, last = batch
        for micro_batch in earlier:
            self._backward(self._sum_loss(micro_batch))
        loss = self._sum_loss(last)
        self.step_sums.send()
        return loss

    def _sum_loss(self, micro_batch: dict[str, Any]) -> Tensor:
        """Returns a micro-batch's weighted sum, and adds it to the step's."""
        sums = self.compute_loss(move_data_to_device(micro_batch, self.device))
        self.step_sums.add(sums, micro_batch)
        return sums.total.mul(micro_batch["counts"] / self._divisor)

    def _backward(self, loss: Tensor) -> None:
        """Runs the backward pass that Lightning runs for a step's last micro-batch alone."""
        strategy = self.trainer.strategy
        is_parallel = isinstance(strategy, ParallelStrategy)
        # The last one's sends the whole step's gradient to the other processes.
        with strategy.block_backward_sync() if is_parallel else nullcontext():
            # Lightning calls `training_step` in the precision's context, in which no backward pass belongs.
            with torch.autocast(self.device.type, enabled=False):
                strategy.backward(loss, None)
        torch.clear_autocast_cache()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradient by all micro-batches' weights, and logs the step's means; refuses an infinite loss."""
        totals = self.step_sums.totals
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        # DDP and FSDP average over the processes. Where nothing weighed anything, the gradient is 0, and stays 0.
        scale = self._divisor * self.trainer.world_size / totals.weight if totals.weight > 0 else 0.0
        torch._foreach_mul_(gradients, scale)
        means = {f"train/{name}": mean for name, mean in totals.means.items()}
        data = self.trainer.datamodule
        means |= data.shares
        if data.own_examples is not None:
            means |= {f"train/own_{name}": value for name, value in data.own_examples.statistics.items()}
        # Lightning would send each number to the device, to fetch it again.
        self.log_dict({name: torch.tensor(value) for name, value in means.items()})
        self.log("train/gradient_norm", whole(torch.nn.utils.get_total_norm(gradients)))
        self.log("train/learning_rate", torch.tensor(optimizer.param_groups[0]["lr"]))

    def on_validation_epoch_start(self) -> None:
        """Starts new sums over tokens, whatever the batches and processes that they are spread over."""
        self._val_sums = {}

    def validation_step(self, batch: list[dict[str, Any]], batch_idx: int) -> None:
        """Adds a batch of held-out questions to the `val/` metrics."""
        for micro_batch in batch:
            sums = self.compute_loss(move_data_to_device(micro_batch, self.device))
            add_sums(self._val_sums, sums, micro_batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the `val/` metrics: means over the tokens of all processes."""
        pairs = self.trainer.strategy.reduce(torch.stack(list(self._val_sums.values())), reduce_op="sum")
        for name, (total, weight) in zip(self._val_sums, pairs.tolist(), strict=True):
            # A segment that no example has is 0 / 0.
            if weight > 0:
                self.log(f"val/{name}", total / weight)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out the frozen weights, which are where they were loaded from."""
        if self.adapter is not None:
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name in trained}

    def configure_optimizers(self) -> dict[str, Any]:
        """Returns AdamW with decay on matrices only, and a schedule over all steps."""
        settings = (self.learning_rate, self.weight_decay, self.schedule, self.warmup_ratio)
        total = self.schedule_steps or int(self.trainer.estimated_stepping_batches)
        return build_optimizer(self.parameters(), *settings, self.trainer, total)

    def export(self, folder: Path) -> None:
        """Saves the student and its tokenizer as a plain Hugging Face folder, atomically; every process calls it."""
        state = gather_state(self.model, self.adapter is not None) if self._is_sharded else None
        if not self.trainer.is_global_zero:
            return
        self.model.config.use_cache = True
        tokenizer = self.trainer.datamodule.tokenizer
        with atomic_path(folder) as temporary:
            if self.adapter is None or self.export_form == "adapter":
                add_end_ids(self.model.generation_config, find_end_tokens(tokenizer))
                self.model.save_pretrained(temporary, state_dict=state)
            else:
                # Into weights that were never in 4 bits.
                with TemporaryDirectory() as alone:
                    self.model.save_pretrained(alone, state_dict=state)
                    merged = load_causal_lm(alone, None, self._weights_dtype, self.keep_layers)
                    add_end_ids(merged.generation_config, find_end_tokens(tokenizer))
                    merged.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            (temporary / CARD).write_text(describe_student(self, self.trainer.datamodule), encoding="utf-8")
            write_sealed(temporary / MANIFEST, {"files": describe_files(temporary)})
