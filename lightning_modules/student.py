"""The student: a causal language model trained on completions, with a teacher's distributions where there are any."""

import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from einops import rearrange
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import get_scheduler

from datamodules.distillation import DistillationDataModule
from datamodules.files import atomic_path
from lightning_modules.pretrained import Dtype, check_model, load_causal_lm
from losses.distillation import DistillationLoss, LossSums, SparseTarget


class DistillationModule(L.LightningModule):
    """Trains a student with the distillation loss, normalised by the global sum of token weights.

    Each micro-batch contributes its weighted *sum*; the gradient is divided by the weights of all micro-batches
    and all processes just before the optimizer's step. So the result does not depend on how a batch is split.
    """

    def __init__(
        self,
        student: str,
        loss: DistillationLoss = DistillationLoss(),  # noqa: B008 (frozen)
        revision: str | None = None,
        dtype: Dtype = "float32",
        keep_layers: list[int] | None = None,
        learning_rate: PositiveFloat = 1e-4,
        weight_decay: NonNegativeFloat = 0.0,
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup_ratio: ClosedUnitInterval = 0.05,
    ):
        """Stores the settings; the student is loaded when the trainer starts.

        Args:
            student: Hub id, local folder, or GGUF file.
            loss: Weights of the mixture and of the segments.
            revision: Commit of a hub model.
            dtype: Of the weights in memory.
            keep_layers: Keep only these decoder layers: a smaller student of the same family.
            learning_rate: AdamW's peak learning rate.
            weight_decay: AdamW's, on matrices only.
            schedule: After the warm-up.
            warmup_ratio: Share of all steps over which the learning rate rises.
        """
        super().__init__()
        if loss.rationale_weight == 0 and loss.answer_weight == 0:
            raise ValueError("loss.rationale_weight and loss.answer_weight are both 0; nothing is supervised")
        numbers = {f"loss.{name}": value for name, value in vars(loss).items()}
        numbers |= {"learning_rate": learning_rate, "weight_decay": weight_decay}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"model.{name} must be finite, not {value}")
        self.student, self.student_revision = student, revision
        self.student_dtype: Dtype = dtype
        self.keep_layers = keep_layers
        self.loss = loss
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.schedule, self.warmup_ratio = schedule, warmup_ratio
        self.model: Any = None
        self._weight_sum: Tensor | None = None
        self._val_means: dict[str, MeanMetric] = {}

    def configure_model(self) -> None:
        """Loads the student, once."""
        if self.model is None:
            self.model = load_causal_lm(self.student, self.student_revision, self.student_dtype, self.keep_layers)
            self.model.config.use_cache = False

    def check(self, data: DistillationDataModule) -> None:
        """Refuses data that does not fit the loss or the student, before anything is written.

        Raises:
            ValueError: Logits without a weight, a weight without logits, a temperature that was not cached, or
                examples longer than the context.
        """
        has_logits = data.supervision == "rationale+logits"
        if has_logits and self.loss.kl_weight == 0:
            raise ValueError(
                "supervision is rationale+logits, but model.loss.kl_weight is 0; the logits would be ignored"
            )
        if not has_logits and self.loss.kl_weight > 0:
            raise ValueError(
                f"model.loss.kl_weight is {self.loss.kl_weight}, but supervision {data.supervision} has no logits"
            )
        for cache in data.caches:
            stored = cache.description.temperatures
            if self.loss.temperature not in stored:
                raise ValueError(
                    f"model.loss.temperature {self.loss.temperature} is not in {cache.folder}, which has {list(stored)}"
                )
        if data.supervision == "label" and self.loss.answer_weight == 0:
            raise ValueError("supervision label supervises only the answer, and model.loss.answer_weight is 0")
        check_model(self.student, self.student_revision, self.keep_layers, data.max_length, "data.max_length")

    def on_fit_start(self) -> None:
        """Starts in training mode, whatever mode the student was saved in."""
        self.model.train()

    def compute_loss(self, batch: dict) -> LossSums:
        """Returns the loss sums over the batch's supervised tokens."""
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits_NV = rearrange(output.logits, "b s v -> (b s) v")[batch["rows"]]
        target = None
        if self.loss.kl_weight > 0:
            planes = batch["target"]
            target = SparseTarget(
                planes["support"],
                planes["log_probs"],
                planes["log_normalizers"],
                planes["log_tails"],
                batch["temperatures"],
            )
        return self.loss(logits_NV, batch["labels"], batch["is_answer"], target)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Returns the weighted sum; `on_before_optimizer_step` normalises its gradient."""
        sums = self.compute_loss(batch)
        self._weight_sum = sums.weight if self._weight_sum is None else self._weight_sum + sums.weight
        for name, (total, weight) in self._sums_by_name(sums).items():
            if weight > 0:
                self.log(f"train/{name}", total / weight)
        return sums.total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradient by the weights of all micro-batches and processes, then logs its norm."""
        weight = self.trainer.strategy.reduce(self._weight_sum, reduce_op="sum")
        self._weight_sum = None
        # Lightning divided the loss by the accumulated batches, and DDP averages over the processes.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / weight
        # Nothing weighed anything: the gradient is 0, and stays 0.
        scale = torch.where(weight > 0, scale, 0.0)
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, scale)
        self.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def on_validation_epoch_start(self) -> None:
        """Starts new means over tokens, whatever the batches and processes that they are spread over."""
        self._val_means = {}

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Adds a batch of held-out questions to the `val/` metrics."""
        for name, (total, weight) in self._sums_by_name(self.compute_loss(batch)).items():
            if name not in self._val_means:
                self._val_means[name] = MeanMetric(nan_strategy="ignore").to(self.device)
            # A segment that this batch lacks is 0 / 0, which the mean leaves out.
            self._val_means[name].update(total / weight, weight)

    def on_validation_epoch_end(self) -> None:
        """Logs the `val/` metrics: means over the tokens of all processes."""
        for name, metric in self._val_means.items():
            mean = metric.compute()
            if not mean.isnan():
                self.log(f"val/{name}", mean)

    @staticmethod
    def _sums_by_name(sums: LossSums) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns (sum, weight) by metric, of the same metrics for every batch; a segment may weigh 0."""
        return {"loss": (sums.total.detach(), sums.weight), **sums.parts}

    def configure_optimizers(self) -> dict:
        """Returns AdamW with decay on matrices only, and a schedule over all steps."""
        groups: list[dict] = [{"params": [], "weight_decay": self.weight_decay}, {"params": [], "weight_decay": 0.0}]
        for parameter in self.parameters():
            groups[parameter.ndim < 2]["params"].append(parameter)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(
            self.schedule if self.schedule != "constant" else "constant_with_warmup",
            optimizer,
            num_warmup_steps=round(self.warmup_ratio * total),
            num_training_steps=total,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def export(self, folder: Path) -> None:
        """Saves the student and its tokenizer as a plain Hugging Face folder, atomically."""
        self.model.config.use_cache = True
        with atomic_path(folder) as temporary:
            self.model.save_pretrained(temporary, safe_serialization=True)
            self.trainer.datamodule.tokenizer.save_pretrained(temporary)
