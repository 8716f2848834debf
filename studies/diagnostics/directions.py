"""Diagnostics of where a teacher's distributions would move the student, beside its text."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from studies.diagnostics.gradients import GradientSketch, compute_logits
from studies.diagnostics.metrics import Diagnostic, Fit, Mean, Values
from studies.diagnostics.scoring import compare_rows
from studies.diagnostics.texts import CommonRows, Direction


def measure_direction(
    sketch: GradientSketch, model: PreTrainedModel, prompt_ids: Sequence[int], token_ids: Sequence[int], own: CommonRows
) -> Direction:
    """Compares the gradients of a completion's two losses, each the mean over its rows, of all parameters.

    With unit gradients g and h, |g + h|^2 = 2 + 2 cos: norms are exact, and no gradient is ever held whole.

    Args:
        sketch: Of the model's gradients; only norms are taken.
        model: The student.
        prompt_ids: What the completion follows.
        token_ids: The completion.
        own: What the teacher says of it.
    """
    device = model.device
    labels_N, rows_N = torch.tensor(token_ids, device=device), torch.from_numpy(own.rows).to(device)
    target = own.target._replace(
        **{name: getattr(own.target, name).to(device) for name in ("support_NK", "log_probs_NKT", "log_tails_NT")}
    )

    def compute_losses() -> tuple[Tensor, Tensor, Tensor]:
        logits_NV = compute_logits(model, prompt_ids, token_ids)
        kl_N = compare_rows(logits_NV[rows_N], target)[0]
        return cross_entropy(logits_NV, labels_N), kl_N.mean(), logits_NV

    ce, _, logits_NV = compute_losses()
    own_best_N = logits_NV.argmax(-1).cpu().numpy()
    meet = own.best > -2
    divergent = int((own.best != own_best_N)[meet].sum())
    ce_norm, kl_norm = (math.sqrt(sketch.take(loss)[0]) for loss in (ce, compute_losses()[1]))
    cosine = math.nan
    if ce_norm > 0 and kl_norm > 0:
        ce, kl, _ = compute_losses()
        cosine = sketch.take(ce / ce_norm + kl / kl_norm)[0] / 2 - 1
    return Direction(cosine, divergent, int(meet.sum()))


def gradient_cosine(fit: Fit) -> Values:
    """Cosine of the student's gradients of cross-entropy on a rationale and of KL to the teacher's distributions."""
    return fit.collect(lambda reading: _find(fit, reading.text.key).cosine)


def divergent_tokens(fit: Fit) -> Values:
    """Share of places where tokens of both begin at which their most probable tokens differ, by bytes."""
    return (
        fit.collect(lambda reading: _find(fit, reading.text.key).divergent),
        fit.collect(lambda reading: _find(fit, reading.text.key).rows),
    )


def _find(fit: Fit, key: str) -> Direction:
    return fit.directions.get(key, Direction(math.nan, 0, 0))


METRICS: list[Diagnostic] = [
    Mean(gradient_cosine, "higher", "this project"),
    Mean(divergent_tokens, None, "arXiv 2509.23886, of teacher and student"),
]
