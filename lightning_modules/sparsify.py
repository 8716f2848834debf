"""From next-token logits to the rows that a logit cache keeps.

Shapes: N rows, V the teacher's head, K support, M draws, T temperatures.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from datamodules.files import hash_text
from datamodules.logit_format import CacheDescription


def _count_draws(ids_NM: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each row's different ids, -1 where there are fewer than m, and how often each occurs."""
    ids_NM = ids_NM.sort(dim=1).values
    is_new = torch.ones_like(ids_NM, dtype=torch.bool)
    is_new[:, 1:] = ids_NM[:, 1:] != ids_NM[:, :-1]
    places = is_new.cumsum(1) - 1
    different = torch.full_like(ids_NM, -1).scatter(1, places, ids_NM)
    return different, torch.zeros_like(ids_NM).scatter_add(1, places, torch.ones_like(ids_NM))


def _draw(log_p_NV: Tensor, draws: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws with replacement from unnormalised distributions; nothing from a row without any mass."""
    has_mass = log_p_NV.amax(-1) > float("-inf")
    shape = (len(log_p_NV), draws)
    ids = torch.full(shape, -1, device=log_p_NV.device, dtype=torch.int64)
    counts = torch.zeros_like(ids)
    if has_mass.any():
        probabilities = log_p_NV[has_mass].softmax(-1)
        drawn = torch.multinomial(probabilities, draws, replacement=True, generator=generator)
        ids[has_mass], counts[has_mass] = _count_draws(drawn)
    return {"drawn": ids, "drawn_counts": counts}


def sparsify(
    logits_NV: Tensor, labels_N: Tensor, made: CacheDescription, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Reduces next-token logits to the rows of `logit_codec`, but for `token_ids` and `hidden`.

    Args:
        logits_NV: Float32 or wider; overwritten. Only ids below the tokenizer's vocabulary enter the support or are
            drawn: a padded head's rows mean nothing.
        labels_N: The completion's own tokens.
        made: Says what is kept.
        generator: Of the draws.
    """
    sparsity = made.sparsity
    log_p_NV = logits_NV.sub_(logits_NV.logsumexp(-1, keepdim=True))
    rows = {"label_log_prob": log_p_NV.gather(1, labels_N[:, None])[:, 0]}
    known_NV = log_p_NV[:, : made.vocabulary]
    if sparsity.top_k is not None:
        log_probs_NK, support_NK = known_NV.topk(made.support_size, dim=-1)
        log_p_NV.scatter_(1, support_NK, float("-inf"))
        unused_NK = torch.zeros_like(support_NK, dtype=torch.bool)
        if sparsity.kind == "adaptive":
            assert sparsity.mass is not None and sparsity.min_k is not None
            before_NK = log_probs_NK.exp().cumsum(-1).roll(1, -1)
            before_NK[:, 0] = 0
            places = torch.arange(support_NK.shape[1], device=support_NK.device)
            unused_NK = (before_NK >= sparsity.mass) & (places >= sparsity.min_k)
        tails = []
        for temperature in made.temperatures:
            outside_N = (log_p_NV if temperature == 1 else log_p_NV / temperature).logsumexp(-1)
            softened_NK = log_probs_NK / temperature
            if sparsity.kind == "adaptive":
                left_NK = softened_NK.masked_fill(~unused_NK, float("-inf"))
                outside_N = torch.logaddexp(outside_N, left_NK.logsumexp(-1))
            inside_N = softened_NK.masked_fill(unused_NK, float("-inf")).logsumexp(-1)
            tails.append(outside_N - torch.logaddexp(outside_N, inside_N))
        rows["support"] = support_NK.masked_fill(unused_NK, -1)
        rows["log_probs"] = log_probs_NK.masked_fill(unused_NK, float("-inf"))
        rows["log_tails"] = torch.stack(tails, dim=-1)
    if sparsity.draws is not None:
        assert generator is not None
        rows |= _draw(known_NV, sparsity.draws, generator)
    return rows


def reduce_example(
    chunks: Iterable[Tensor], labels_N: Tensor, made: CacheDescription, example_id: str
) -> dict[str, np.ndarray]:
    """Returns one example's rows, but for `hidden`, from chunks of its logits.

    Draws have a stream for each example, so that they do not depend on its batch; another kind of device has
    another stream.
    """
    generator = None
    if made.sparsity.draws is not None:
        generator = torch.Generator(labels_N.device)
        generator.manual_seed(int(hash_text(f"{made.sparsity.draw_seed}/{example_id}"), 16))
    parts: list[dict[str, Tensor]] = []
    start = 0
    for logits_NV in chunks:
        parts.append(sparsify(logits_NV, labels_N[start : start + len(logits_NV)], made, generator))
        start += len(logits_NV)
    rows = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    return {**rows, "token_ids": labels_N.cpu().numpy()}
