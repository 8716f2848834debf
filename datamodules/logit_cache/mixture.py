"""Several teachers' distributions of the same tokens as one: their mixture by weight.

p(i) = sum_m w_m p_m(i), at each stored temperature of the softened p_m. Samples stay unbiased, since the mixture is
linear. Of sparse rows, the support is the union of the teachers' supports, and the tail is the mixture of their tails,
so that all masses add up to 1. A token that is in one teacher's support and not in another's has an unknown part of the
other's tail: it stays in the mixture's tail. So a token's probability is never above the mixture's own, and below it by
at most the sum of w_m min(tau_m, the smallest p_m in m's support) over the teachers m without it; and the tail is too
large by at most the sum of w_m tau_m. The completion's own token is exact wherever some teacher's support has it, since
every cache knows each teacher's probability of it. Where all supports hold the whole vocabulary, everything is exact.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from datamodules.examples.tokenization import Example
from datamodules.logit_cache.codec import SMALLEST_TAIL, Arrays
from datamodules.logit_cache.format import CacheDescription

_LAST = np.iinfo(np.int32).max


class RowReader(Protocol):
    """Gives a teacher's rows of an example's completion."""

    @property
    def description(self) -> CacheDescription:
        """What the rows depend on."""

    def read(self, *examples: Example) -> Arrays:
        """Returns the rows of the examples, one after the other; see `decode_rows`."""


class CacheMixture:
    """Reads the mixture of several teachers' rows.

    Args:
        readers: One for each teacher, of the same kind of rows and temperatures.
        weights: Of the teachers, above 0; their shares count.
    """

    def __init__(self, readers: Sequence[RowReader], weights: Sequence[float]):
        self.readers, self.weights = readers, np.array(weights, np.float64) / np.sum(weights)

    @property
    def description(self) -> CacheDescription:
        """What the first teacher's rows depend on; the temperatures are those of all."""
        return self.readers[0].description

    def read(self, *examples: Example) -> Arrays:
        """Returns the mixed rows of the examples, one after the other; see `mix_rows`."""
        parts = [reader.read(*examples) for reader in self.readers]
        labels = np.concatenate([example.token_ids[example.num_prompt_tokens :] for example in examples])
        return mix_rows(parts, self.weights, self.description.temperatures, labels)


def mix_rows(parts: Sequence[Arrays], weights: np.ndarray, temperatures: Sequence[float], labels: np.ndarray) -> Arrays:
    """Returns the mixture of several teachers' rows.

    Args:
        parts: As `decode_rows` gives them, or with `log_probs` [N, k, T] that are softened already and without
            `log_normalizers`; with `has_target` bool [N] where a teacher says nothing of some rows, whose weight the
            other teachers share.
        weights: Of the teachers, float64, of sum 1.
        temperatures: T, that all rows are stored for.
        labels: int [N]; the completion's own tokens.

    Returns:
        `support` int32 [N, K], ascending and -1 where unused, and either `weights` [N, K], 0 there, or `log_probs`
        [N, K, T], softened and -inf there, and `log_tails` [N, T]; in the parts' type. `has_target` if a part has it.
    """
    knows: np.ndarray = np.stack([part.get("has_target", np.ones(len(labels), bool)) for part in parts], axis=1)
    shares = np.where(knows, weights, 0.0)
    # A row that no teacher says anything of keeps the first one's filler.
    shares[~knows.any(1), 0] = 1
    shares /= shares.sum(1, keepdims=True)
    found: Arrays = {"has_target": np.array(knows.any(1))} if any("has_target" in part for part in parts) else {}
    supports = [np.where(share[:, None] > 0, part["support"], -1) for part, share in zip(parts, shares.T, strict=True)]
    ids = np.concatenate(supports, axis=1)
    if "weights" in parts[0]:
        masses = [
            part["weights"][..., None] * share[:, None, None] for part, share in zip(parts, shares.T, strict=True)
        ]
        support, mass = _merge(ids, np.concatenate(masses, axis=1))
        return {"support": support, "weights": mass[..., 0].astype(parts[0]["weights"].dtype), **found}
    has_label = [(support == labels[:, None]).any(1) for support in supports]
    in_union = np.any(has_label, axis=0)
    masses, tails = [], np.zeros((len(labels), len(temperatures)))
    label_mass = np.zeros_like(tails)
    for part, share, has in zip(parts, shares.T, has_label, strict=True):
        tail = np.exp(part["log_tails"].astype(np.float64))
        own = _read_label(part, temperatures, tail) * (in_union & ~has)[:, None]
        masses.append(np.exp(soften_rows(part, temperatures)) * share[:, None, None])
        tails += (tail - own) * share[:, None]
        label_mass += own * share[:, None]
    ids = np.concatenate([ids, np.where(in_union, labels, -1)[:, None]], axis=1)
    support, mass = _merge(ids, np.concatenate([*masses, label_mass[:, None]], axis=1))
    dtype = parts[0]["log_tails"].dtype
    with np.errstate(divide="ignore"):
        return {
            "support": support,
            "log_probs": np.log(mass).astype(dtype),
            "log_tails": np.log(tails).astype(dtype),
            **found,
        }


def soften_rows(part: Arrays, temperatures: Sequence[float]) -> np.ndarray:
    """Returns log p_T of sparse rows' support at each stored temperature, float64 [N, k, T]; -inf where unused."""
    log_probs: np.ndarray = part["log_probs"].astype(np.float64)
    if "log_normalizers" in part:
        log_probs = log_probs[..., None] / np.array(temperatures) - part["log_normalizers"][:, None]
    return log_probs


def _read_label(part: Arrays, temperatures: Sequence[float], tail: np.ndarray) -> np.ndarray:
    """Returns p_T of the completion's own token, float64 [N, T], of rows where the tail holds it; 0 if not known."""
    if "label_log_prob" not in part or "log_normalizers" not in part:
        return np.zeros_like(tail)
    log_prob = part["label_log_prob"].astype(np.float64)[:, None] / np.array(temperatures) - part["log_normalizers"]
    # What both were rounded to cannot say that nothing else is there.
    probs: np.ndarray = np.minimum(np.exp(log_prob), np.maximum(tail - SMALLEST_TAIL, 0.0))
    return probs


def _merge(ids: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds up the mass of equal ids in each row.

    Args:
        ids: int [N, k], -1 where unused.
        mass: [N, k, T], 0 there.

    Returns:
        The different ids of each row, int32 [N, K], ascending, then -1; and their mass, float64 [N, K, T].
    """
    ids = np.where(ids < 0, _LAST, ids)
    order = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    is_new = np.diff(ids, axis=1, prepend=-1) != 0
    places = np.cumsum(is_new, axis=1) - 1
    width = int(places.max(initial=0)) + 1
    flat = (np.arange(len(ids))[:, None] * width + places).ravel()
    support = np.full(len(ids) * width, -1, np.int32)
    support[flat] = np.where(ids == _LAST, -1, ids).ravel()
    ordered = np.take_along_axis(mass, order[..., None], axis=1)
    sums = [np.bincount(flat, ordered[..., index].ravel(), len(support)) for index in range(mass.shape[2])]
    support_NK, merged = support.reshape(-1, width), np.stack(sums, axis=-1).reshape(-1, width, mass.shape[2])
    used = max(1, int((support_NK >= 0).sum(1).max(initial=0)))
    return support_NK[:, :used], merged[:, :used]
