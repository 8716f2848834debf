"""What is known of text that a student drew itself, beside the loss: how stale it is, what the teacher thinks of it.

Shapes: N supervised tokens, D width, V vocabulary, K support, J chosen tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from losses.targets import FullTarget, SampledTarget, SoftenedTarget, SparseTarget, Target

TOP = 16
# Enough for means of a step, whatever its size.
MOST_ROWS = 256
OWN_STATISTICS = ("staleness", f"teacher_mass_on_top_{TOP}")


def estimate_staleness(log_now_N: Tensor, log_then_N: Tensor) -> Tensor:
    """Returns each row's estimate of KL(now || then) from tokens that were drawn then, [N].

    With w = now / then it is w log w - (w - 1), never below 0, whose mean over draws is the divergence exactly.
    """
    log_w_N = log_now_N - log_then_N
    w_N = log_w_N.exp()
    return w_N * log_w_N - (w_N - 1)


def sum_teacher_mass(target: Target, ids_NJ: Tensor, vocabulary: int) -> Tensor | None:
    """Returns the teacher's probability of some tokens of each row at temperature 1, as far as it is known, [N].

    None where the teacher says nothing of single tokens.

    Args:
        target: The teacher's rows.
        ids_NJ: Different tokens of each row.
        vocabulary: Of the student.
    """
    if isinstance(target, FullTarget):
        return target.log_probs(1.0, vocabulary).gather(-1, ids_NJ).exp().sum(-1)
    if isinstance(target, SampledTarget):
        p_NK = target.weights_NK
    elif isinstance(target, SparseTarget | SoftenedTarget):
        p_NK = target.at_temperature(1.0)[0].exp()
    else:
        return None
    is_among_NK = (target.support_NK[:, :, None] == ids_NJ[:, None, :]).any(-1)
    return torch.where(is_among_NK, p_NK, 0.0).sum(-1)


def select_rows(target: Target, rows: Tensor) -> Target:
    """Returns the target of some rows, by their numbers."""
    # A field's shape is the last part of its name.
    values = {name: value for name, value in target._asdict().items() if name.rpartition("_")[2].startswith("N")}
    return target._replace(**{name: value[rows] for name, value in values.items() if value is not None})


@torch.no_grad()
def describe_own_rows(
    student_ND: Tensor,
    project: Callable[[Tensor], Tensor],
    labels_N: Tensor,
    log_then_N: Tensor,
    target: Target,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns (sum, count) of what `OWN_STATISTICS` names, over at most `MOST_ROWS` rows, evenly spread.

    `staleness` is KL(now || then); `teacher_mass_on_top_16` the teacher's probability of the student's 16 most
    probable tokens, as far as its support shows.

    Args:
        student_ND: The student's last hidden states, or its logits.
        project: Turns them into logits.
        labels_N: The tokens that were drawn.
        log_then_N: Their log-probabilities then.
        target: The teacher's rows.
    """
    stride = -(-len(labels_N) // MOST_ROWS)
    rows_N = torch.arange(0, len(labels_N), stride, device=labels_N.device)
    log_q_NV = project(student_ND[rows_N].detach()).float().log_softmax(-1)
    log_now_N = log_q_NV.gather(-1, labels_N[rows_N, None])[:, 0]
    count = log_now_N.new_tensor(len(rows_N))
    found = {OWN_STATISTICS[0]: (estimate_staleness(log_now_N, log_then_N[rows_N].to(log_now_N)).sum(), count)}
    vocabulary = log_q_NV.shape[-1]
    top_NJ = log_q_NV.topk(min(TOP, vocabulary), -1).indices
    if (mass_N := sum_teacher_mass(select_rows(target, rows_N), top_NJ, vocabulary)) is not None:
        found[OWN_STATISTICS[1]] = (mass_N.sum(), count)
    return found
