"""A batch's cached teacher rows as the loss's target, and whether a logit cache can give what a loss needs."""

import torch
from torch import Tensor

from datamodules.logit_cache.reader import LogitCache
from losses.distillation import DistillationLoss, check_kind
from losses.fused_head import OutputHead
from losses.schedules import Schedule, bounds
from losses.targets import FullTarget, SampledTarget, SoftenedTarget, SparseTarget, Target

KINDS: dict[str, type[Target]] = {
    "top_k": SparseTarget,
    "adaptive": SparseTarget,
    "sampled": SampledTarget,
    "hybrid": SampledTarget,
    "hidden": FullTarget,
}


def check_cache(loss: DistillationLoss, cache: LogitCache, is_mixed: bool = False) -> None:
    """Refuses a loss that the cache's rows cannot give at some step.

    Args:
        loss: The loss.
        cache: The cache.
        is_mixed: Whether its rows are mixed with those of other teachers, whose normalisers are not one another's.

    Raises:
        ValueError: The cache's kind does not have the divergence or the tail, or the temperature is not stored.
    """
    kind = KINDS[cache.description.sparsity.kind]
    for progress in (0.0, 1.0):
        check_kind(loss.at(progress).mixture, kind)
    if kind is not SparseTarget:
        return
    stored = list(cache.description.temperatures)
    low, high = bounds(loss.temperature)
    if loss.unstored_temperature == "interpolate" and not is_mixed:
        fits = min(stored) <= low <= high <= max(stored)
    else:
        moves = isinstance(loss.temperature, Schedule) and loss.temperature.shape != "step" and low < high
        fits = low in stored and high in stored and not moves
    if not fits:
        wanted = low if low == high else f"{low} to {high}"
        otherwise = "set model.loss.unstored_temperature to interpolate between two"
        if is_mixed:
            otherwise = "choose one of these: a mixture of teachers is not interpolated"
        raise ValueError(
            f"model.loss.temperature {wanted} is not in {cache.folder}, which has {stored}; capture again with it, or "
            f"{otherwise}"
        )


def load_teacher_head(cache: LogitCache, device: torch.device) -> OutputHead:
    """Returns the teacher's output head of a cache of hidden states, cut to the tokenizer's vocabulary."""
    tensors, facts = cache.read_head(), cache.manifest["head"]
    vocabulary = cache.description.vocabulary
    weight_VD = tensors["weight"][:vocabulary].to(device)
    bias_V = tensors["bias"][:vocabulary].to(device) if "bias" in tensors else None
    return OutputHead(weight_VD, bias_V, facts["scale"], facts["softcap"])


def build_target(planes: dict[str, Tensor], temperatures: tuple[float, ...], teacher_head: OutputHead | None) -> Target:
    """Returns the target of a batch.

    Args:
        planes: See `collate_targets`.
        temperatures: That the cache stores; of sparse rows.
        teacher_head: The teacher's; of hidden states.
    """
    if "weights" in planes:
        return SampledTarget(planes["support"].long(), planes["weights"])
    if "hidden" in planes:
        assert teacher_head is not None
        weight_VD, bias_V, scale, softcap = teacher_head
        hidden_ND = (scale * planes["hidden"]).to(weight_VD.dtype)
        return FullTarget(hidden_ND, weight_VD, None if bias_V is None else scale * bias_V, softcap)
    # Half as wide on the way from the worker and to the device.
    support_NK = planes["support"].long()
    if "log_normalizers" not in planes:
        return SoftenedTarget(support_NK, planes["log_probs"], planes["log_tails"], temperatures)
    return SparseTarget(support_NK, planes["log_probs"], planes["log_normalizers"], planes["log_tails"], temperatures)
