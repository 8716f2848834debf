"""The teacher under `Trainer.predict`: it answers questions (annotate) and scores rationales (cache logits)."""

import math
from typing import Any

import lightning as L
import numpy as np
import torch
from einops import rearrange
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from torch import Tensor

from datamodules.answers import extract_neutral
from datamodules.distillation import RationaleDataModule
from datamodules.generation import QuestionDataModule
from datamodules.logit_cache import PLANES, CacheDescription
from datamodules.rationales import Rationale
from lightning_modules.generation import generate_completions
from lightning_modules.pretrained import Dtype, check_model, identify_weights, load_causal_lm, name_model


class TeacherModule(L.LightningModule):
    """Holds a teacher; loads it when the trainer starts, so that a wrong config never waits for it."""

    def __init__(
        self,
        teacher: str,
        revision: str | None = None,
        family: str = "unknown",
        dtype: Dtype = "float32",
        keep_layers: list[int] | None = None,
    ):
        """Stores the settings.

        Args:
            teacher: Hub id, local folder, or GGUF file.
            revision: Commit of a hub model.
            family: The teacher's family, as studies group it.
            dtype: Of the weights in memory.
            keep_layers: Keep only these decoder layers.
        """
        super().__init__()
        self.teacher, self.teacher_revision, self.family = teacher, revision, family
        self.teacher_dtype: Dtype = dtype
        self.keep_layers = keep_layers
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

    def configure_model(self) -> None:
        """Loads the teacher, once."""
        if self.model is None:
            self.model = load_causal_lm(self.teacher, self.teacher_revision, self.teacher_dtype, self.keep_layers)
            self.model.eval().requires_grad_(False)


class Annotator(TeacherModule):
    """Answers questions with a chain of thought; every rationale is kept, whatever its answer."""

    def __init__(
        self,
        teacher: str,
        max_new_tokens: PositiveInt = 256,
        temperature: NonNegativeFloat = 0.0,
        num_samples: PositiveInt = 1,
        **kwargs,
    ):
        """Stores the settings.

        Args:
            teacher: Hub id, local folder, or GGUF file.
            max_new_tokens: Truncates a rationale, which is then marked `length`.
            temperature: 0 is greedy.
            num_samples: Rationales of each question; more than one needs a temperature.
            kwargs: See `TeacherModule`.
        """
        super().__init__(teacher, **kwargs)
        if not math.isfinite(temperature):
            raise ValueError(f"model.temperature must be finite, not {temperature}")
        if num_samples > 1 and temperature == 0:
            raise ValueError(f"num_samples={num_samples} needs a temperature above 0: greedy samples are all alike")
        self.max_new_tokens, self.temperature, self.num_samples = max_new_tokens, temperature, num_samples

    def check(self, data: QuestionDataModule) -> None:
        """Raises a ValueError if the teacher cannot be loaded, or a generation may leave its context."""
        length = data.max_length + self.max_new_tokens
        what = "data.max_length + model.max_new_tokens"
        check_model(self.teacher, self.teacher_revision, self.keep_layers, length, what)

    def predict_step(self, batch: dict, batch_idx: int) -> list[dict]:
        """Returns one Rationale record for each question and sample."""
        data: QuestionDataModule = self.trainer.datamodule
        completions = generate_completions(
            self.model,
            batch["input_ids"],
            batch["attention_mask"],
            data.tokenizer.eos_token_id,
            self.max_new_tokens,
            self.temperature,
            self.num_samples,
        )
        records = []
        for number, (ids, finish_reason) in enumerate(completions):
            question = data.posed[batch["question_ids"][number // self.num_samples]].question
            text = data.tokenizer.decode(ids, skip_special_tokens=True).strip()
            extraction = extract_neutral(text, question)
            answer = extraction.answer if extraction else None
            rationale = Rationale(
                question_id=question.id,
                task=question.task,
                split=question.split,
                teacher=self.teacher_name,
                family=self.family,
                sample=number % self.num_samples,
                text=text,
                answer=answer,
                correct=None if question.gold is None else answer == question.gold,
                finish_reason="stop" if finish_reason == "stop" else "length",
                prompt_id=data.prompt.id,
            )
            records.append(vars(rationale))
        return records


def sparsify(
    logits_NV: Tensor, top_k: int, vocabulary: int, temperatures: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reduces next-token logits to the cache's planes.

    Args:
        logits_NV: Float32 or wider.
        top_k: Size of the support.
        vocabulary: Only ids below this, the tokenizer's, enter the support: a padded head's rows mean nothing.
        temperatures: For the normalisers and tails.

    Returns:
        support [N, k] int64, log_probs [N, k], log_normalizers [N, T], log_tails [N, T].
    """
    log_p_NV = logits_NV.log_softmax(-1)
    log_probs_NK, support_NK = log_p_NV[:, :vocabulary].topk(min(top_k, vocabulary), dim=-1)
    off_support_NV = log_p_NV.scatter(-1, support_NK, float("-inf"))
    normalizers = torch.stack([(log_p_NV / t).logsumexp(-1) for t in temperatures], dim=-1)
    tails = torch.stack([(off_support_NV / t).logsumexp(-1) for t in temperatures], dim=-1)
    return support_NK, log_probs_NK, normalizers, tails - normalizers


class LogitScorer(TeacherModule):
    """Reads each (prompt, rationale) once, teacher-forced, and returns its sparse distributions."""

    def __init__(
        self,
        teacher: str,
        top_k: PositiveInt = 64,
        temperatures: list[float] | None = None,
        **kwargs,
    ):
        """Stores the settings.

        Args:
            teacher: Hub id, local folder, or GGUF file.
            top_k: Size of the support; the rest is one tail bucket.
            temperatures: For which training will be exact; null is [1, 2].
            kwargs: See `TeacherModule`.
        """
        super().__init__(teacher, **kwargs)
        self.top_k = top_k
        self.temperatures = tuple(sorted(set(temperatures or [1.0, 2.0])))
        if not all(0 < temperature < float("inf") for temperature in self.temperatures):
            raise ValueError(f"temperatures must be above 0 and finite, not {list(self.temperatures)}")

    def describe(self, fingerprint: str, prompt_id: str) -> CacheDescription:
        """Returns what the rows depend on."""
        return CacheDescription(
            teacher=self.teacher_name,
            revision=self.weights_id,
            tokenizer_fingerprint=fingerprint,
            prompt_id=prompt_id,
            top_k=self.top_k,
            temperatures=self.temperatures,
            dtype=self.teacher_dtype,
        )

    def check(self, data: RationaleDataModule) -> None:
        """Raises a ValueError if the teacher cannot be loaded, or an example may leave its context."""
        check_model(self.teacher, self.teacher_revision, self.keep_layers, data.max_length, "data.max_length")

    def predict_step(self, batch: dict, batch_idx: int) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns (example id, planes) for each example of the batch."""
        data = self.trainer.datamodule
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits_NV = rearrange(output.logits, "b s v -> (b s) v")[batch["rows"]].float()
        planes = sparsify(logits_NV, self.top_k, len(data.tokenizer), self.temperatures)
        arrays = [batch["labels"], *planes]
        types = [np.int32, np.int32, np.float32, np.float32, np.float32]
        columns = [plane.cpu().numpy().astype(kind) for plane, kind in zip(arrays, types, strict=True)]
        counts = torch.bincount(batch["rows"] // batch["input_ids"].shape[1]).tolist()
        ends = np.cumsum(counts)
        results = []
        for example_id, start, end in zip(batch["example_ids"], ends - counts, ends, strict=True):
            results.append(
                (example_id, {name: column[start:end] for name, column in zip(PLANES, columns, strict=True)})
            )
        return results
