"""The parts of `conversion`: the teacher's rows at each temperature, and the mass of tokens that span its own.

N rows of the student, W places, of the teacher's tokens at first and of the student's at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.logit_cache.codec import Arrays
from datamodules.logit_cache.token_map import TokenMap


def find_duplicates(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds ids that a row has before, in [N, W]; -1 is none.

    Returns:
        The flat places of all but the first of each, and, for each, the flat place of the first; ascending by row.
    """
    N, W = ids.shape
    shift = max(W - 1, 1).bit_length()
    wide = int(ids.max(initial=0)) >> (31 - shift) > 0
    dtype = np.int64 if wide else np.int32
    # A row's ids in order, and the places of one id in order, in one sort of plain numbers.
    keys: np.ndarray = (ids.astype(dtype, copy=False) << shift) | np.arange(W, dtype=dtype)
    keys.sort(axis=1)
    numbers = keys >> shift
    repeats = np.zeros((N, W), bool)
    np.equal(numbers[:, 1:], numbers[:, :-1], out=repeats[:, 1:])
    repeats &= numbers >= 0
    found = np.flatnonzero(repeats.any(1))
    if not len(found):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    repeats = repeats[found]
    places = keys[found].astype(np.int64) & ((1 << shift) - 1)
    firsts = np.maximum.accumulate(np.where(repeats, 0, np.arange(W)), axis=1)
    leaders = np.take_along_axis(places, firsts, 1)
    starts = found[:, None] * W
    return (places + starts)[repeats], (leaders + starts)[repeats]


def _log(mass: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logs: np.ndarray = np.log(np.maximum(mass, 0))
    return logs


@dataclass(eq=False)
class Softened:
    """The teacher's rows that govern the student's, softened by each temperature.

    Attributes:
        support: int32 [N, W]; the teacher's ids, -1 where unused.
        log_probs: [N, W] of each temperature; -inf where unused.
        log_tails: [N] of each temperature.
        temperatures: The temperatures.
        planes: Their numbers among those of the cache.
    """

    support: np.ndarray
    log_probs: list[np.ndarray]
    log_tails: list[np.ndarray]
    temperatures: Sequence[float]
    planes: Sequence[int]

    @classmethod
    def of(
        cls, rows: Arrays, row: np.ndarray, width: int, temperatures: Sequence[float], planes: Sequence[int]
    ) -> "Softened":
        """Returns these rows with room for `width` tokens."""
        own = rows["support"].shape[1]
        support = np.full((len(row), width), -1, np.int32)
        support[:, :own] = rows["support"][row]
        log_probs = []
        for temperature, plane in zip(temperatures, planes, strict=True):
            wide = np.full((len(row), width), -np.inf, rows["log_probs"].dtype)
            wide[:, :own] = rows["log_probs"][row]
            if temperature != 1:
                wide /= temperature
                wide -= rows["log_normalizers"][row, plane, None]
            log_probs.append(wide)
        log_tails = [rows["log_tails"][row, plane] for plane in planes]
        return cls(support, log_probs, log_tails, temperatures, planes)

    def add_realised(self, rows: Arrays, row: np.ndarray, chosen: np.ndarray) -> None:
        """Gives these rows the token that the teacher's text has, where their support lacks it, out of the tail."""
        realised = rows["token_ids"][row[chosen]]
        chosen = chosen[(self.support[chosen] != realised[:, None]).all(1)]
        realised, place = rows["token_ids"][row[chosen]], rows["support"].shape[1]
        if not len(chosen):
            return
        self.support[chosen, place] = realised
        for temperature, plane, log_probs, log_tails in zip(
            self.temperatures, self.planes, self.log_probs, self.log_tails, strict=True
        ):
            own = rows["label_log_prob"][row[chosen]] / temperature - rows["log_normalizers"][row[chosen], plane]
            log_probs[chosen, place] = own
            log_tails[chosen] = _log(np.exp(log_tails[chosen]) - np.exp(own))

    def keep_prefixed(self, tokens: TokenMap, realised: np.ndarray, chosen: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Conditions these rows on the bytes that are out, and returns the student's ids of what is left, [M, W]."""
        support = self.support[chosen]
        ranges = [
            tokens.find_range(tokens.teacher.tokens[token][:length])
            for token, length in zip(realised.tolist(), out.tolist(), strict=True)
        ]
        low, high = np.array(ranges).T[:, :, None]
        ranks = tokens.ranks[support]
        fits = (ranks >= low) & (ranks < high) & (support >= 0)
        has_rest = fits & (tokens.teacher.lengths[support] > out[:, None])
        ids = np.full(support.shape, -1, np.int32)
        ids[has_rest] = tokens.suffix_prefixes[(tokens.starts[support] + out[:, None])[has_rest]]
        for log_probs, log_tails in zip(self.log_probs, self.log_tails, strict=True):
            kept = np.where(fits, log_probs[chosen], -np.inf)
            log_mass = _log(np.exp(kept).sum(1) + np.exp(log_tails[chosen]))
            log_probs[chosen] = kept - log_mass[:, None]
            log_tails[chosen] -= log_mass
        return ids

    def drop_unmapped(self, ids: np.ndarray) -> None:
        """Adds to the tail what the student has no token for."""
        unmapped = (ids < 0) & (self.support >= 0)
        chosen = np.flatnonzero(unmapped.any(1))
        if not len(chosen):
            return
        unmapped = unmapped[chosen]
        for log_probs, log_tails in zip(self.log_probs, self.log_tails, strict=True):
            lost = np.where(unmapped, np.exp(log_probs[chosen]), 0).sum(1)
            log_tails[chosen] = _log(np.exp(log_tails[chosen]) + lost)
        for log_probs in self.log_probs:
            log_probs[ids < 0] = -np.inf

    def merge(self, place: np.ndarray, leader: np.ndarray) -> None:
        """Adds what is at flat places to their leaders; a place alone keeps every bit."""
        if not len(place):
            return
        heads, group = np.unique(leader, return_inverse=True)
        for wide in self.log_probs:
            flat = wide.reshape(-1)
            more = np.bincount(group, np.exp(flat[place] - flat[leader]))
            flat[heads] += np.log1p(more).astype(flat.dtype)
            flat[place] = -np.inf


@dataclass(eq=False)
class Chain:
    """What the student's tokens that end after the teacher's take of its mass, at temperature 1.

    Attributes:
        owner: int64 [E]; the number of the spanning row of each entry, ascending.
        ids: int32 [E]; the student's id that gains; those of a row from the shortest to the longest.
        order: int64 [E]; the entry's number within its row.
        cylinders: float64 [E]; the probability that the text goes on with this token.
        sources: int32 [M]; the student's id that loses in each spanning row; -1 for the tail.
    """

    owner: np.ndarray
    ids: np.ndarray
    order: np.ndarray
    cylinders: np.ndarray
    sources: np.ndarray

    @property
    def width(self) -> int:
        """The number of places that a row may need."""
        return int(self.order.max(initial=-1)) + 1

    @classmethod
    def find(cls, tokens: TokenMap, rows: Arrays, first: np.ndarray, stops: np.ndarray) -> "Chain":
        """Finds them for spanning rows.

        Args:
            tokens: The two vocabularies.
            rows: The teacher's.
            first: int64 [M]; the governing row of each.
            stops: int64 [M]; the row after the completion's last.
        """
        entries = []
        realised, names = rows["token_ids"], tokens.teacher.tokens
        for index, (start, stop) in enumerate(zip(first.tolist(), stops.tolist(), strict=True)):
            text, ends = b"", [0]
            for token in realised[start:stop].tolist():
                text += names[token]
                ends.append(len(text))
                if len(text) >= tokens.longest or not names[token]:
                    break
            for nth, (student_id, length) in enumerate(tokens.find_prefixes(text, ends[1])):
                inside = 1
                while inside + 1 < len(ends) and ends[inside + 1] <= length:
                    inside += 1
                low, high = 0, 0
                if rest := length - ends[inside]:
                    low, high = tokens.find_range(names[realised[start + inside]][:rest])
                entries.append((index, student_id, nth, start, inside, low, high))
        owner, ids, order, *places = np.array(entries, np.int64).reshape(-1, 7).T
        return cls(
            owner,
            ids.astype(np.int32),
            order,
            _measure(tokens, rows, *places) if entries else np.zeros(0),
            tokens.prefix_tokens[realised[first]],
        )

    def place(self, ids: np.ndarray, spanning: np.ndarray, width: int) -> None:
        """Gives each gaining token a place of its own in `ids`, without mass."""
        ids[spanning[self.owner], width - 1 - self.order] = self.ids

    def move(self, ids: np.ndarray, spanning: np.ndarray, tokens: Softened) -> None:
        """Moves the mass in rows whose duplicates were merged."""
        if not len(self.owner):
            return
        is_last = np.append(self.owner[1:] != self.owner[:-1], True)
        gains = self.cylinders - np.where(is_last, 0, np.append(self.cylinders[1:], 0))
        is_first = self.order == 0
        lost_of = self.owner[is_first]
        owner = np.concatenate([self.owner, lost_of])
        wanted = np.concatenate([self.ids, self.sources[lost_of]])
        change = np.concatenate([gains, -self.cylinders[is_first]])
        [log_probs], [log_tails] = tokens.log_probs, tokens.log_tails
        from_tail = wanted < 0
        if from_tail.any():
            chosen = spanning[owner[from_tail]]
            log_tails[chosen] = _log(np.exp(log_tails[chosen]) + change[from_tail])
        row = spanning[owner[~from_tail]]
        column = (ids[row] == wanted[~from_tail, None]).argmax(1)
        mass = np.exp(log_probs[spanning].astype(np.float64))
        np.add.at(mass, (owner[~from_tail], column), change[~from_tail])
        log_probs[spanning] = _log(mass)


def _measure(
    tokens: TokenMap, rows: Arrays, start: np.ndarray, inside: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Returns the probability of `inside` tokens from row `start` on and then of one of a range of ranks."""
    support, log_probs = rows["support"], rows["log_probs"].astype(np.float64)
    is_realised = support == rows["token_ids"][:, None]
    has_realised = is_realised.any(1)
    in_support = np.take_along_axis(log_probs, is_realised.argmax(1)[:, None], 1)[:, 0]
    own = np.where(has_realised, in_support, rows["label_log_prob"])
    # Unknown: no row of its completion is here, yet the sum runs through all completions of the batch.
    own[np.isneginf(own)] = 0
    sums = np.concatenate([[0.0], np.cumsum(own)])
    product = np.exp(sums[start + inside] - sums[start])
    partial = high > low
    last = np.where(partial, start + inside, start)
    ranks = tokens.ranks[support[last]]
    begins = (ranks >= low[:, None]) & (ranks < high[:, None]) & (support[last] >= 0)
    mass = np.where(begins, np.exp(log_probs[last]), 0).sum(1) + np.where(has_realised[last], 0, np.exp(own[last]))
    measured: np.ndarray = np.where(partial, product * mass, product)
    return measured
