"""Between a teacher's rows and the planes of a logit cache, vectorised over rows; `logit_format` names the planes.

Rows are what a scorer makes: `token_ids` [N], `label_log_prob` [N] and, whichever the kind has, `support` and
`log_probs` [N, k] with -1 and -inf where a row has fewer entries, `log_tails` [N, T]; `drawn` and `drawn_counts`
[N, m] with -1 and 0; `hidden` [N, d].
"""

from collections.abc import Sequence

import numpy as np

from datamodules.logit_cache.format import DTYPES, LOW_IDS, CacheDescription, list_planes

Arrays = dict[str, np.ndarray]
# exp(r / 4) in 256 equal steps: the step in r grows as exp(-r / 4), close to the exp(-r / 3) over the cube root of
# the entries' density that minimises the mean squared error weighted by probability (Bennett 1948).
LOG_RATIOS = (4 * np.log1p(-np.arange(256) / 256)).astype(np.float32)
_LOG_RATIO_PAIRS = LOG_RATIOS[np.arange(1 << 16, dtype=np.uint16).view(np.uint8)].view(np.uint64)
_BOUNDARIES = -(LOG_RATIOS[1:] + LOG_RATIOS[:-1]) / 2
# 1 minus a sum of float32 probabilities knows no smaller tail.
SMALLEST_TAIL = np.float32(2.0**-24)


def _pack_ids(ids: np.ndarray, num_high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts each row's ids [N, k] by id // 65,536, the unused (-1) last.

    Returns:
        The order int64 [N, k], sizes int64 [N], and counts int64 [N, H] of the ids of each number above 0.
    """
    high = np.where(ids < 0, num_high + 1, ids // LOW_IDS).astype(np.uint8)
    order = np.argsort(high, axis=1, kind="stable")
    counts = np.stack([(high == number).sum(1) for number in range(1, num_high + 1)], 1) if num_high else high[:, :0]
    return order, (ids >= 0).sum(1), counts


def _unpack_ids(low: np.ndarray, sizes: np.ndarray | int, counts: np.ndarray | None) -> np.ndarray:
    """Returns ids, int32 [N, k], from their low halves [N, k]; see `_pack_ids`."""
    ids = low.astype(np.int32)
    if counts is None:
        return ids
    places = np.arange(low.shape[1] + 1)
    # Row s is what the ids from place s on have more.
    more = LOW_IDS * (places[:-1] >= places[:, None]).astype(np.int32)
    starts = np.full(len(low), sizes, np.int64)
    for number in range(counts.shape[1] - 1, -1, -1):
        starts = starts - counts[:, number]
        ids += np.take(more, starts, axis=0)
    return ids


def _fill(flat: np.ndarray, sizes: np.ndarray, fill: float) -> np.ndarray:
    """Spreads a ragged plane over [N, largest size]."""
    mask = np.arange(sizes.max(initial=0)) < sizes[:, None]
    filled = np.full(mask.shape, fill, flat.dtype)
    filled[mask] = flat
    return filled


def _fill_ids(low: np.ndarray, sizes: np.ndarray, counts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids int32 [N, largest size] of a ragged plane, -1 where unused, and which are used."""
    ids = _unpack_ids(_fill(low, sizes, 0), sizes, counts)
    used = np.arange(ids.shape[1]) < sizes[:, None]
    ids[~used] = -1
    return ids, used


def _encode_head(made: CacheDescription, rows: Arrays) -> Arrays:
    ids, log_probs = rows["support"], rows["log_probs"].astype(np.float64)
    order, sizes, counts = _pack_ids(ids, made.num_high)
    ids, log_probs = np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1)
    used = ids >= 0
    ratios = log_probs - log_probs.max(1, keepdims=True)
    if made.sparsity.values == "uint8":
        values: np.ndarray = np.searchsorted(_BOUNDARIES, -ratios).astype(np.uint8)
    else:
        # Far below float16's own range lie no probabilities that a float32 softmax gives.
        values = np.maximum(ratios, -65504).astype(np.float16)
    decoded = np.where(used, decode_values(values), -np.inf).astype(np.float64)
    log_tail = rows["log_tails"][:, made.temperatures.index(1.0)].astype(np.float16)
    normalizers = np.empty((len(ids), len(made.temperatures)), np.float32)
    for index, temperature in enumerate(made.temperatures):
        tail = log_tail if temperature == 1 else rows["log_tails"][:, index]
        inside = np.log1p(-np.exp(tail.astype(np.float64)))
        normalizers[:, index] = np.log(np.exp(decoded / temperature).sum(1)) - inside
    assert np.isfinite(normalizers).all(), "a row without probability inside its support"
    planes = {
        "support_size": sizes,
        "support_low": ids[used] % LOW_IDS,
        "support_high": counts,
        "values": values[used],
        "log_tail": log_tail,
        "log_normalizers": normalizers,
    }
    return planes


def _round_bfloat16(values: np.ndarray) -> np.ndarray:
    """Returns the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def encode_rows(made: CacheDescription, rows: Arrays) -> Arrays:
    """Returns the planes of one example's rows, in `list_planes`'s order and types.

    Raises:
        ValueError: A hidden state does not fit its type.
    """
    tokens = rows["token_ids"]
    planes = {
        "tokens_low": tokens % LOW_IDS,
        "tokens_high": tokens // LOW_IDS,
        "label_log_prob": rows["label_log_prob"],
    }
    if "support" in rows:
        planes |= _encode_head(made, rows)
    if "drawn" in rows:
        order, sizes, counts = _pack_ids(rows["drawn"], made.num_high)
        ids = np.take_along_axis(rows["drawn"], order, 1)
        drawn = np.take_along_axis(rows["drawn_counts"], order, 1)[ids >= 0]
        planes |= {"drawn_size": sizes, "drawn_low": ids[ids >= 0] % LOW_IDS, "drawn_high": counts}
        planes["drawn_counts"] = drawn
    if "hidden" in rows:
        is_bfloat16 = made.sparsity.values == "bfloat16"
        if made.sparsity.values == "float16" and np.abs(rows["hidden"]).max() > np.finfo(np.float16).max:
            raise ValueError("a hidden state is larger than float16 holds; set model.values to bfloat16 or float32")
        planes["hidden"] = _round_bfloat16(rows["hidden"]) if is_bfloat16 else rows["hidden"]
    return {name: np.ascontiguousarray(planes[name], DTYPES[plane.dtype]) for name, plane in list_planes(made).items()}


def decode_values(values: np.ndarray) -> np.ndarray:
    """Returns r = log p - log p_max, float32, from uint8 codes or float16."""
    if values.dtype != np.uint8:
        return values.astype(np.float32)
    if values.shape[-1] % 2 or not values.flags.c_contiguous:
        return np.take(LOG_RATIOS, values)
    # Two codes at a time: taking from a table costs by the number of indices.
    return np.take(_LOG_RATIO_PAIRS, values.view(np.uint16)).view(np.float32)


def _sum_powers(values: np.ndarray, temperatures: Sequence[float], used: np.ndarray | None) -> list[np.ndarray]:
    """Returns for each T the sum over each row's used entries of exp(r / T), float32 [N]."""
    ones, sums = np.ones(values.shape[1], np.float32), []
    if values.dtype == np.uint8 and {2.0, 4.0} & set(temperatures):
        # exp(r / 4) is a step of 1 / 256; squares and sums are several times as fast as a table, and as near.
        steps = np.subtract(256, values, dtype=np.float32)
        if used is not None:
            steps *= used
    for temperature in temperatures:
        if values.dtype == np.uint8 and temperature == 4:
            sums.append(steps @ ones / 256)
        elif values.dtype == np.uint8 and temperature == 2:
            sums.append(np.einsum("nk,nk->n", steps, steps) / 65536)
        else:
            if values.dtype == np.uint8:
                powers = np.take(np.exp(LOG_RATIOS.astype(np.float64) / temperature).astype(np.float32), values)
            else:
                powers = np.exp(values.astype(np.float32) / np.float32(temperature))
            sums.append((powers if used is None else powers * used) @ ones)
    return sums


def _decode_head(made: CacheDescription, planes: Arrays) -> Arrays:
    low, values, stored = planes["support_low"], planes["values"], planes["log_normalizers"]
    if "support_size" in planes:
        sizes = planes["support_size"].astype(np.int64)
        support, used = _fill_ids(low, sizes, planes.get("support_high"))
        values = _fill(values, sizes, 0)
    else:
        size = made.support_size
        support, used = _unpack_ids(low.reshape(-1, size), size, planes.get("support_high")), None
        values = values.reshape(-1, size)
    own = stored[:, made.temperatures.index(1.0), None]
    log_probs = decode_values(values)
    log_probs -= own
    log_tail = planes["log_tail"].astype(np.float32)
    tails = np.empty_like(stored)
    others = [temperature for temperature in made.temperatures if temperature != 1]
    sums = dict(zip(others, _sum_powers(values, others, used), strict=True))
    for index, temperature in enumerate(made.temperatures):
        if temperature == 1:
            tails[:, index] = log_tail
            continue
        left = 1 - sums[temperature] * np.exp(-stored[:, index])
        # A support of the whole vocabulary has no tail at any temperature.
        tails[:, index] = np.where(np.isneginf(log_tail), -np.inf, np.log(np.maximum(left, SMALLEST_TAIL)))
    if used is not None:
        log_probs[~used] = -np.inf
    return {
        "support": support,
        "log_probs": log_probs,
        "log_normalizers": stored - own / np.array(made.temperatures, np.float32),
        "log_tails": tails,
    }


def _decode_drawn(made: CacheDescription, planes: Arrays) -> Arrays:
    sizes = planes["drawn_size"].astype(np.int64)
    support, _ = _fill_ids(planes["drawn_low"], sizes, planes.get("drawn_high"))
    counts = _fill(planes["drawn_counts"], sizes, 0).astype(np.float32)
    return {"support": support, "weights": counts / np.float32(made.sparsity.draws)}


def decode_tokens(planes: Arrays) -> np.ndarray:
    """Returns the completion's token ids, int32 [N]."""
    tokens = planes["tokens_low"].astype(np.int32)
    return tokens + (planes["tokens_high"].astype(np.int32) << 16) if "tokens_high" in planes else tokens


def decode_rows(made: CacheDescription, planes: Arrays) -> Arrays:
    """Returns the rows that losses take, beside `token_ids` int32 [N] and `label_log_prob` float32 [N].

    top_k, adaptive: `support` int32 [N, k], -1 where unused; `log_probs` float32 [N, k], -inf there;
    `log_normalizers` float32 [N, T] and `log_tails` float32 [N, T], so that log p_T = log_probs / T - A_T, with
    A_1 = 0. sampled, hybrid: `support` and `weights` float32 [N, m], 0 where unused, of sum 1. hidden: `hidden`
    float32 [N, d]. labels: nothing else.
    """
    rows = {"token_ids": decode_tokens(planes), "label_log_prob": planes["label_log_prob"].astype(np.float32)}
    kind = made.sparsity.kind
    if kind == "labels":
        return rows
    if kind in ("top_k", "adaptive"):
        return rows | _decode_head(made, planes)
    if kind == "sampled":
        return rows | _decode_drawn(made, planes)
    if kind == "hybrid":
        head, drawn = _decode_head(made, planes), _decode_drawn(made, planes)
        parts = [np.exp(head["log_probs"]), np.exp(head["log_tails"]) * drawn["weights"]]
        support = np.concatenate([head["support"], drawn["support"]], axis=1)
        return rows | {"support": support, "weights": np.concatenate(parts, axis=1)}
    hidden = planes["hidden"]
    if hidden.dtype == np.uint16:
        return rows | {"hidden": (hidden.astype(np.uint32) << 16).view(np.float32)}
    return rows | {"hidden": hidden.astype(np.float32)}
