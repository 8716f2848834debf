"""The teacher's rows of a batch, as the losses take them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from datamodules.examples.tokenization import Example
from datamodules.logit_cache.mixture import RowReader

# What fills a row that has fewer entries than the batch's widest.
FILLS = {"support": -1, "log_probs": -np.inf, "weights": 0}


class ExactTensors:
    """Named tensors of a batch that keep their dtype, whereas Lightning's true half precisions round all they find.

    Args:
        tensors: By name.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors

    def to(self, device: torch.device) -> "ExactTensors":
        """Returns them on a device."""
        is_gpu = device.type == "cuda"
        return ExactTensors({name: tensor.to(device, non_blocking=is_gpu) for name, tensor in self.tensors.items()})

    def pin_memory(self) -> "ExactTensors":
        """Returns them in page-locked memory."""
        return ExactTensors({name: tensor.pin_memory() for name, tensor in self.tensors.items()})


def _list_planes(rows: dict[str, np.ndarray]) -> list[str]:
    """Returns which of a cache's planes the losses take: the tokens' own probability where there is nothing else."""
    return [name for name in rows if name not in ("token_ids", "label_log_prob")] or ["label_log_prob"]


def _join_rows(parts: list[dict[str, np.ndarray]], orders: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Puts the rows of several caches into one order; `orders` are the row numbers of each part's rows."""
    joined = {}
    total = sum(map(len, orders))
    if "chunks" in parts[0]:
        # Each part counts its own.
        counts = [len(part["chunk_log_probs"]) for part in parts]
        starts = np.cumsum(counts) - counts
        joined["chunk_log_probs"] = np.concatenate([part.pop("chunk_log_probs") for part in parts])
        for part, start in zip(parts, starts.tolist(), strict=True):
            part["chunks"] = np.where(part["chunks"] < 0, -1, part["chunks"] + start)
    for name in _list_planes(parts[0]):
        first = parts[0][name]
        widest = [max(part[name].shape[1] for part in parts)] if first.ndim > 1 else []
        joined[name] = np.full((total, *widest, *first.shape[2:]), FILLS.get(name, 0), first.dtype)
        for part, order in zip(parts, orders, strict=True):
            if widest:
                joined[name][order, : part[name].shape[1]] = part[name]
            else:
                joined[name][order] = part[name]
    return joined


def collate_targets(examples: Sequence[Example], caches: Mapping[str, RowReader]) -> dict[str, torch.Tensor]:
    """Returns the teachers' rows of a batch, in the examples' order, one for each completion token.

    Args:
        examples: The batch; a process may read examples of several caches at once.
        caches: By example id; of the same temperatures, and of kinds whose rows mean the same.

    Returns:
        top_k, adaptive: `support` int32 [N, k], -1 where a row has fewer entries; `log_probs` float32 [N, k], -inf
        there; `log_normalizers` float32 [N, T] (A_T) and `log_tails` float32 [N, T], so that log p_T(i) =
        log_probs / T - A_T and exp(log p_T).sum() + exp(log_tail_T) = 1 for every stored T, and A_1 = 0. sampled,
        hybrid: `support` int32 [N, m] and `weights` float32 [N, m], 0 where unused; each row sums to 1. hidden:
        `hidden` float32 [N, d]. labels: `label_log_prob` float32 [N]. Of a mixture of teachers, see
        `mix_rows`; of aligned caches, `RowConverter.convert` and `convert_chunks`.

    Raises:
        ValueError: An example's rows are damaged, or of other tokens.
    """
    groups: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(id(caches[example.id]), []).append(index)
    parts = [caches[examples[numbers[0]].id].read(*(examples[n] for n in numbers)) for numbers in groups.values()]
    rows = parts[0]
    if len(parts) > 1:
        lengths = np.array([len(example.token_ids) - example.num_prompt_tokens for example in examples])
        starts = np.cumsum(lengths) - lengths
        orders = [np.concatenate([starts[n] + np.arange(lengths[n]) for n in numbers]) for numbers in groups.values()]
        rows = _join_rows(parts, orders)
    return {name: torch.from_numpy(rows[name]) for name in _list_planes(rows)}
