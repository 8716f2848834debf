"""A student reads texts: surprisal, rank and entropy of every token; what texts share is computed once."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from datamodules.batches.packing import order_by_length, pack, pad_rows
from lightning_modules.model.row_head import HeadRows, RowHead
from losses.divergences import forward_kl
from losses.targets import SoftenedTarget, SparseTarget


class Span(NamedTuple):
    """Tokens that continue a prompt.

    Attributes:
        token_ids: The tokens.
        start: The first one that is scored.
        has_target: Whether a teacher's distributions of the scored tokens are known.
    """

    token_ids: Sequence[int]
    start: int = 0
    has_target: bool = False


class TokenScores(NamedTuple):
    """What a student makes of each scored token, float32 [n] each.

    Attributes:
        nll: -log q(token), in nats.
        rank: 1 + the number of tokens that the student finds more probable.
        entropy: Of the student's distribution, in nats.
        kl: KL(p || q) to the teacher's distribution, over its support and one bucket for the rest; nan without.
        mass: The student's probability of the teacher's support.
        agreement: 1 where both find the same token the most probable.
    """

    nll: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    mass: np.ndarray
    agreement: np.ndarray


def score_rows(logits_NV: Tensor, labels_N: Tensor) -> list[Tensor]:
    """Returns surprisal, rank and entropy of each row, float32 [N] each."""
    log_z_N = logits_NV.logsumexp(-1)
    label_N = logits_NV.gather(1, labels_N[:, None])[:, 0]
    rank_N = 1 + (logits_NV > label_N[:, None]).sum(-1)
    entropy_N = log_z_N - (logits_NV.softmax(-1) * logits_NV).sum(-1)
    return [log_z_N - label_N, rank_N.float(), entropy_N]


def compare_rows(logits_NV: Tensor, target: SparseTarget | SoftenedTarget) -> list[Tensor]:
    """Returns KL(p || q), the student's mass on the support, and agreement of the most probable token, [N] each."""
    log_p_NK, log_tail_N = target.at_temperature(1.0)
    support_NK = target.support_NK.clamp(min=0)
    log_q_NK = logits_NV.gather(1, support_NK) - logits_NV.logsumexp(-1)[:, None]
    log_q_NK = log_q_NK.masked_fill(target.support_NK < 0, -torch.inf)
    mass_N = log_q_NK.exp().sum(-1).clamp(max=1)
    log_rest_N = (1 - mass_N).clamp(min=1e-30).log()
    kl_N = forward_kl(
        torch.cat([log_p_NK, log_tail_N[:, None]], 1),
        torch.cat([log_q_NK, log_rest_N[:, None]], 1),
    )
    first_N = support_NK.gather(1, log_p_NK.argmax(1)[:, None])[:, 0]
    return [kl_N, mass_N, (first_N == logits_NV.argmax(-1)).float()]


@torch.inference_mode()
def score_spans(
    head: RowHead,
    prompt_ids: Sequence[int],
    spans: Sequence[Span],
    tokens_per_batch: int,
    read_targets: Callable[[list[int]], SparseTarget] | None = None,
) -> list[TokenScores]:
    """Scores all continuations of one prompt, which is computed once; they are batched by length.

    Args:
        head: The student.
        prompt_ids: What the spans continue. Without a prompt, nothing predicts a span's first token, which is not
            scored then.
        spans: The continuations, of two tokens at least.
        tokens_per_batch: Budget in padded tokens; on a processor a small one, since padding costs as much as text.
        read_targets: Returns a teacher's distributions of the scored tokens of these spans, all of which have
            `has_target`, one span after the other.
    """
    model, device = head.model, head.model.device
    cache = DynamicCache(config=model.config)
    if len(prompt_ids) > 1:
        prompt = torch.tensor([prompt_ids[:-1]], device=device)
        model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    inputs = [[*prompt_ids[-1:], *span.token_ids[:-1]] for span in spans]
    # The row that predicts token number k is k, or k - 1 where there is no prompt.
    shift = 0 if prompt_ids else 1
    starts = [max(span.start, shift) for span in spans]
    lengths = np.array([len(ids) for ids in inputs])
    scores: dict[int, TokenScores] = {}
    for numbers in map(np.ndarray.tolist, pack(order_by_length(lengths, None), lengths, tokens_per_batch)):
        input_ids_BS = pad_rows([inputs[number] for number in numbers], 0).to(device)
        own = copy.deepcopy(cache)
        if len(prompt_ids) > 1:
            own.batch_repeat_interleave(len(numbers))
        rows = [
            index * input_ids_BS.shape[1] - shift + np.arange(starts[number], len(spans[number].token_ids))
            for index, number in enumerate(numbers)
        ]
        labels_N = torch.tensor([token for number in numbers for token in spans[number].token_ids[starts[number] :]])
        counts = [len(part) for part in rows]
        known = [number for number in numbers if spans[number].has_target]
        target = read_targets(known) if read_targets is not None and known else None
        known_N = torch.tensor(np.repeat([spans[number].has_target for number in numbers], counts))
        batch = {"input_ids": input_ids_BS, "past_key_values": own, "use_cache": True}
        head_rows = head.run_rows(batch, torch.from_numpy(np.concatenate(rows)).to(device))
        planes = _score_chunks(head_rows, labels_N.to(device), known_N, target)
        for number, *parts in zip(numbers, *(_split(plane, counts) for plane in planes), strict=True):
            scores[number] = TokenScores(*parts)
    return [scores[number] for number in range(len(spans))]


def _score_chunks(
    head_rows: HeadRows, labels_N: Tensor, known_N: Tensor, target: SparseTarget | None
) -> Iterator[np.ndarray]:
    """Yields each plane of `TokenScores` for all rows; nan where no teacher is known."""
    chunks, start, num_known = [], 0, 0
    for logits_CV in head_rows.iterate_logits():
        stop = start + len(logits_CV)
        chunk = torch.full((6, len(logits_CV)), torch.nan)
        chunk[:3] = torch.stack(score_rows(logits_CV, labels_N[start:stop])).cpu()
        in_chunk_C = known_N[start:stop]
        if target is not None and (number := int(in_chunk_C.sum())):
            part = target.rows(num_known, num_known + number)
            chunk[3:, in_chunk_C] = torch.stack(compare_rows(logits_CV[in_chunk_C.to(logits_CV.device)], part)).cpu()
            num_known += number
        chunks.append(chunk)
        start = stop
    yield from torch.cat(chunks, 1).numpy()


def _split(plane: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    return np.split(plane, np.cumsum(counts)[:-1])
