"""From next-token logits to the rows that a logit cache keeps.

Shapes: N rows, V the teacher's head, K support, M draws, T temperatures.
"""

import sys
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.files.atomic import hash_text
from datamodules.logit_cache.format import CacheDescription

CPU_BLOCK_ELEMENTS = 1 << 20


def _count_draws(ids_NM: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each row's different ids, -1 where there are fewer than m, and how often each occurs."""
    ids_NM = ids_NM.sort(dim=1).values
    is_new = torch.ones_like(ids_NM, dtype=torch.bool)
    is_new[:, 1:] = ids_NM[:, 1:] != ids_NM[:, :-1]
    places = is_new.cumsum(1) - 1
    different = torch.full_like(ids_NM, -1).scatter(1, places, ids_NM)
    return different, torch.zeros_like(ids_NM).scatter_add(1, places, torch.ones_like(ids_NM))


def _draw(logits_NV: Tensor, draws: int, streams: Sequence[tuple[torch.Generator, int]]) -> dict[str, Tensor]:
    """Draws with replacement; nothing from a row without any mass. A stream serves so many rows."""
    has_mass = logits_NV.amax(-1) > float("-inf")
    ids = torch.full((len(logits_NV), draws), -1, device=logits_NV.device, dtype=torch.int64)
    counts = torch.zeros_like(ids)
    start = 0
    for generator, number in streams:
        rows = start + torch.nonzero(has_mass[start : start + number])[:, 0]
        start += number
        if len(rows):
            probabilities = logits_NV[rows].softmax(-1)
            drawn = torch.multinomial(probabilities, draws, replacement=True, generator=generator)
            ids[rows], counts[rows] = _count_draws(drawn)
    assert start == len(logits_NV)
    return {"drawn": ids, "drawn_counts": counts}


def _logsumexp(logits_NV: Tensor, largest_N: Tensor, temperature: float) -> Tensor:
    """Returns log sum exp(logits / T), -inf where all are, in one pass and one buffer.

    torch's own takes three times as long on a CPU, since it makes a copy to divide.
    """
    largest_N = largest_N.clamp(min=torch.finfo(logits_NV.dtype).min)
    shifted_NV = logits_NV - largest_N[:, None]
    if temperature != 1:
        shifted_NV /= temperature
    return shifted_NV.exp_().sum(-1).log_() + largest_N / temperature


def sparsify(
    logits_NV: Tensor,
    labels_N: Tensor,
    made: CacheDescription,
    streams: Sequence[tuple[torch.Generator, int]] = (),
) -> dict[str, Tensor]:
    """Reduces next-token logits to the rows of `logit_codec`, but for `token_ids` and `hidden`.

    Args:
        logits_NV: Float32 or wider; overwritten. Only ids below the tokenizer's vocabulary enter the support or are
            drawn: a padded head's rows mean nothing.
        labels_N: The completion's own tokens.
        made: Says what is kept.
        streams: Of the draws: generators, each with how many of the rows it serves, in order.
    """
    sparsity = made.sparsity
    label_N = logits_NV.gather(1, labels_N[:, None])[:, 0]
    known_NV = logits_NV[:, : made.vocabulary]
    rows = {}
    if sparsity.top_k is None:
        normalizer_N = _logsumexp(logits_NV, logits_NV.amax(-1), 1.0)
    else:
        top_NK, support_NK = known_NV.topk(made.support_size, dim=-1)
        logits_NV.scatter_(1, support_NK, float("-inf"))
        largest_N = logits_NV.amax(-1)
        outside_NT = torch.stack([_logsumexp(logits_NV, largest_N, t) for t in made.temperatures], dim=-1)
        softened_NKT = top_NK[..., None] / torch.tensor(made.temperatures, device=top_NK.device)
        one = made.temperatures.index(1.0)
        normalizer_N = torch.logaddexp(outside_NT[:, one], softened_NKT[..., one].logsumexp(1))
        log_probs_NK = top_NK - normalizer_N[:, None]
        if sparsity.kind == "adaptive":
            assert sparsity.mass is not None and sparsity.min_k is not None
            before_NK = log_probs_NK.exp().cumsum(-1).roll(1, -1)
            before_NK[:, 0] = 0
            places = torch.arange(support_NK.shape[1], device=support_NK.device)
            unused_NK = (before_NK >= sparsity.mass) & (places >= sparsity.min_k)
            left_NKT = softened_NKT.masked_fill(~unused_NK[..., None], float("-inf"))
            outside_NT = torch.logaddexp(outside_NT, left_NKT.logsumexp(1))
            softened_NKT.masked_fill_(unused_NK[..., None], float("-inf"))
            support_NK.masked_fill_(unused_NK, -1)
            log_probs_NK.masked_fill_(unused_NK, float("-inf"))
        inside_NT = softened_NKT.logsumexp(1)
        rows = {
            "support": support_NK,
            "log_probs": log_probs_NK,
            "log_tails": outside_NT - torch.logaddexp(outside_NT, inside_NT),
        }
    if sparsity.draws is not None:
        rows |= _draw(known_NV, sparsity.draws, streams)
    return {**rows, "label_log_prob": label_N - normalizer_N}


def reduce_rows(
    chunks: Iterable[Tensor],
    labels_N: Tensor,
    made: CacheDescription,
    example_ids: Sequence[str],
    counts: Sequence[int],
) -> list[dict[str, np.ndarray]]:
    """Returns the rows, but for `hidden`, of several examples.

    Draws have a stream for each example, so that they do not depend on its batch; another kind of device has
    another stream.

    Args:
        chunks: Logits of the examples' rows, one example after the other; overwritten.
        labels_N: The completions' own tokens.
        made: Says what is kept.
        example_ids: The examples.
        counts: Their numbers of rows.
    """
    device = labels_N.device
    # What the passes over a block read again lies in the processor's cache.
    block_elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else sys.maxsize
    generators = [torch.Generator(device) for _ in example_ids]
    for generator, example_id in zip(generators, example_ids, strict=True):
        generator.manual_seed(int(hash_text(f"{made.sparsity.draw_seed}/{example_id}"), 16))
    ends = np.cumsum(counts).tolist()
    parts: list[dict[str, Tensor]] = []
    start = 0
    for chunk_NV in chunks:
        for logits_NV in chunk_NV.split(max(1, block_elements // chunk_NV.shape[1])):
            stop = start + len(logits_NV)
            shares = [min(stop, end) - max(start, end - count) for end, count in zip(ends, counts, strict=True)]
            streams = [(generator, share) for generator, share in zip(generators, shares, strict=True) if share > 0]
            parts.append(sparsify(logits_NV, labels_N[start:stop], made, streams))
            start = stop
    joined = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    joined["token_ids"] = labels_N.cpu().numpy()
    spans = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return [{name: plane[span] for name, plane in joined.items()} for span in spans]
