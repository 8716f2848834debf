"""Universal logit distillation (ULD; Boizard et al. 2024, arXiv 2402.12030), as a baseline: no loss of Kindred's.

Row k of the student meets row k of the teacher, whatever text either stands for; both distributions are sorted, and

    L = CE + 1.5 * sum_i |p_(i) - q_(i)|

1.5 is the paper's weight. Rows beyond the shorter completion have cross-entropy alone. Of the teacher's probabilities
those of the cache's support are compared, and the rest of both as one.
"""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from datamodules.examples.tokenization import Example
from datamodules.logit_cache.aligned import AlignedCache
from datamodules.logit_cache.codec import Arrays
from datamodules.logit_cache.format import CacheDescription
from lightning_modules.student.student import DistillationModule
from losses.distillation import LossSums

WEIGHT = 1.5


class SortedRows:
    """Reads a cache's probabilities in descending order, row by row of the student's completions.

    Args:
        cache: Of a teacher with another tokenizer.
    """

    def __init__(self, cache: AlignedCache):
        self.cache = cache.cache

    @property
    def description(self) -> CacheDescription:
        """What the rows depend on."""
        return self.cache.description

    def read(self, *examples: Example) -> Arrays:
        """Returns `sorted` float32 [N, k], descending, and `has_target` bool [N]."""
        parts, flags = [], []
        for example in examples:
            probs = -np.sort(-np.exp(self.cache.read_foreign([example.id])["log_probs"]), axis=1)
            length = len(example.token_ids) - example.num_prompt_tokens
            parts.append(np.zeros((length, probs.shape[1]), np.float32))
            parts[-1][: len(probs)] = probs[:length]
            flags.append(np.arange(length) < len(probs))
        width = max(part.shape[1] for part in parts)
        wide = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
        return {"sorted": np.concatenate(wide), "has_target": np.concatenate(flags)}


def sum_sorted(logits_NV: Tensor, labels_N: Tensor, sorted_NK: Tensor, has_target_N: Tensor) -> Tensor:
    """Returns the sum over rows of CE + 1.5 times the distance of the sorted probabilities.

    Args:
        logits_NV: The student's.
        labels_N: Its tokens.
        sorted_NK: The teacher's probabilities, descending.
        has_target_N: Which rows have any.
    """
    ce = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")
    K = min(sorted_NK.shape[1], logits_NV.shape[1])
    q_NV = logits_NV.softmax(-1).sort(-1, descending=True).values
    p_NK, q_NK = sorted_NK[:, :K], q_NV[:, :K]
    distance_N = (p_NK - q_NK).abs().sum(-1) + (p_NK.sum(-1) - q_NK.sum(-1)).abs()
    return ce + WEIGHT * torch.where(has_target_N, distance_N, 0.0).sum()


class SortedLogitsModule(DistillationModule):
    """Trains a student with that loss."""

    def compute_loss(self, batch: dict[str, Any]) -> LossSums:
        """Returns the sums over the batch's supervised tokens."""
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits_NV = rearrange(output.logits, "b s v -> (b s) v")[batch["rows"]]
        planes = batch["target"].tensors
        total = sum_sorted(logits_NV, batch["labels"], planes["sorted"], planes["has_target"])
        return LossSums(total, torch.tensor(float(len(logits_NV))), {})


def sort_caches(caches: dict[str, AlignedCache]) -> dict[str, SortedRows]:
    """Returns the same caches by example id, read in descending order."""
    made = {id(cache): SortedRows(cache) for cache in caches.values()}
    return {identifier: made[id(cache)] for identifier, cache in caches.items()}
