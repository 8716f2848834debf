"""A batch's cached teacher rows as the loss's target, and whether a logit cache can give what a loss needs."""

from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.logit_cache.aligned import AlignedCache
from datamodules.logit_cache.reader import LogitCache
from losses.distillation import DistillationLoss, check_kind
from losses.fused_head import OutputHead
from losses.schedules import Schedule, bounds
from losses.targets import ChunkTarget, DrawnTarget, FullTarget, SampledTarget, SoftenedTarget, SparseTarget, Target

KINDS: dict[str, type[Target]] = {
    "top_k": SparseTarget,
    "adaptive": SparseTarget,
    "sampled": SampledTarget,
    "hybrid": SampledTarget,
    "hidden": FullTarget,
    "labels": DrawnTarget,
}


class TeacherHead(NamedTuple):
    """What turns a teacher's hidden states into its distribution.

    Attributes:
        head: The teacher's output head, cut to its tokenizer's vocabulary.
        ids_V: The student's id of each of the teacher's, -1 for none; None where they are the same.
    """

    head: OutputHead
    ids_V: Tensor | None


def find_kind(cache: LogitCache | AlignedCache) -> type[Target]:
    """Returns what kind of target a cache's rows make."""
    kind = KINDS[cache.description.sparsity.kind]
    if isinstance(cache, AlignedCache):
        if cache.settings.kind == "chunks":
            return ChunkTarget
        return SoftenedTarget if kind is SparseTarget else kind
    return kind


def check_cache(loss: DistillationLoss, cache: LogitCache | AlignedCache, is_mixed: bool = False) -> None:
    """Refuses a loss that the cache's rows cannot give at some step.

    Args:
        loss: The loss.
        cache: The cache.
        is_mixed: Whether its rows are mixed with those of other teachers, whose normalisers are not one another's.

    Raises:
        ValueError: The cache's kind does not have the divergence or the tail, or the temperature is not stored.
    """
    kind = find_kind(cache)
    if is_mixed and kind is SparseTarget:
        kind = SoftenedTarget
    for progress in (0.0, 1.0):
        check_kind(loss.at(progress).mixture, kind)
    low, high = bounds(loss.temperature)
    if kind is ChunkTarget and cache.description.sparsity.draws is not None and (low, high) != (1, 1):
        raise ValueError(f"loss.temperature: a sampled teacher was drawn at 1, not at {low if low != 1 else high}")
    if kind not in (SparseTarget, SoftenedTarget):
        return
    stored = list(cache.description.temperatures)
    if (
        isinstance(cache, AlignedCache)
        and (low, high) != (1, 1)
        and stored != list(cache.cache.description.temperatures)
    ):
        raise ValueError(
            f"model.loss.temperature is {low if low != 1 else high}, but a chain over several of the teacher's tokens "
            "is exact at 1 only; set data.alignment.spans to skip"
        )
    if loss.unstored_temperature == "interpolate" and kind is SparseTarget:
        fits = min(stored) <= low <= high <= max(stored)
    else:
        moves = isinstance(loss.temperature, Schedule) and loss.temperature.shape != "step" and low < high
        fits = low in stored and high in stored and not moves
    if not fits:
        wanted = low if low == high else f"{low} to {high}"
        otherwise = "set model.loss.unstored_temperature to interpolate between two"
        if kind is SoftenedTarget:
            otherwise = "choose one of these: rows that are mixed or aligned are not interpolated"
        raise ValueError(
            f"model.loss.temperature {wanted} is not in {cache.folder}, which has {stored}; capture again with it, or "
            f"{otherwise}"
        )


def load_teacher_head(cache: LogitCache | AlignedCache, device: torch.device) -> TeacherHead | None:
    """Returns the teacher's output head, cut to the tokenizer's vocabulary; None where rows are no hidden states."""
    if find_kind(cache) is not FullTarget:
        return None
    own = cache.cache if isinstance(cache, AlignedCache) else cache
    tensors, facts = own.read_head(), own.manifest["head"]
    vocabulary = cache.description.vocabulary
    weight_VD = tensors["weight"][:vocabulary].to(device)
    bias_V = tensors["bias"][:vocabulary].to(device) if "bias" in tensors else None
    ids_V = None
    if isinstance(cache, AlignedCache):
        ids_V = torch.from_numpy(cache.table[:vocabulary]).long().to(device)
    return TeacherHead(OutputHead(weight_VD, bias_V, facts["scale"], facts["softcap"]), ids_V)


def build_target(
    planes: dict[str, Tensor],
    temperatures: tuple[float, ...],
    teacher_head: TeacherHead | None,
    log_then_N: Tensor | None = None,
) -> Target:
    """Returns the target of a batch.

    Args:
        planes: See `collate_targets`.
        temperatures: That the rows have; of sparse ones.
        teacher_head: The teacher's; of hidden states.
        log_then_N: The student's log-probabilities of the tokens when it drew them; where it did.
    """
    has_target_N = planes.get("has_target")
    if "chunks" in planes:
        return ChunkTarget(planes["chunks"], planes["chunk_log_probs"])
    if "label_log_prob" in planes:
        assert log_then_N is not None
        return DrawnTarget(planes["label_log_prob"], log_then_N)
    if "weights" in planes:
        return SampledTarget(planes["support"].long(), planes["weights"], has_target_N)
    if "hidden" in planes:
        assert teacher_head is not None
        weight_VD, bias_V, scale, softcap = teacher_head.head
        hidden_ND = (scale * planes["hidden"]).to(weight_VD.dtype)
        bias_V = None if bias_V is None else scale * bias_V
        return FullTarget(hidden_ND, weight_VD, bias_V, softcap, teacher_head.ids_V, has_target_N)
    # Half as wide on the way from the worker and to the device.
    support_NK = planes["support"].long()
    if "log_normalizers" not in planes:
        return SoftenedTarget(support_NK, planes["log_probs"], planes["log_tails"], temperatures, has_target_N)
    return SparseTarget(support_NK, planes["log_probs"], planes["log_normalizers"], planes["log_tails"], temperatures)
