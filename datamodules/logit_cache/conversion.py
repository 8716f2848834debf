"""A teacher's cached rows as rows in the vocabulary of a student with another tokenizer.

`strict` keeps the rows in which both write the same bytes, and gives each of the teacher's tokens to the student's of
the same bytes (arXiv 2610.08448). `bytes` asks of every row how probable it is that the text goes on with the bytes
of a student's token (byte-prefix matching, arXiv 2607.22334): with b(t) the bytes of a token, phi(x) the longest of
the student's tokens that bytes x begin with, p_g the teacher's row, y the text, r the bytes of the teacher's token
t_g that are out already, and a the place in the text,

    exact        P(u) = sum over t with phi(b(t)) = u of p_g(t)
    conditional  P(u) = sum over t that begin with the r bytes x, and phi(b(t)[r:]) = u, of p_g(t) / D,
                 D = sum over t that begin with x of p_g(t), and the tail
    spanning     the exact row's, with mass moved to the tokens c_1, c_2, ... of the student that y[a:] begins with
                 and that end after t_g does: P(phi(b(t_g))) -= cyl(c_1), P(c_i) += cyl(c_i) - cyl(c_{i + 1}), where
                 cyl(c) is the probability of the teacher's tokens wholly inside c, times that of those which begin
                 with the rest of c

It is the distribution given the teacher's own tokens up to the last that ended, not the sum over all ways to cut the
text into tokens. What the student has no token for joins the tail, so that mass is neither made nor lost.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from datamodules.examples.alignment import CONDITIONAL, EXACT, SPANNING, STRICT, Alignment
from datamodules.logit_cache.codec import Arrays
from datamodules.logit_cache.converted_rows import Chain, Softened, find_duplicates
from datamodules.logit_cache.format import Kind
from datamodules.logit_cache.token_map import TokenMap
from datamodules.text.token_bytes import VocabularyBytes

Spans = Literal["chain", "skip"]
Whitespace = Literal["keep", "skip"]


# A row without a target: the student's token (None) is certain.
_FILLERS = (("support", -1, None), ("log_probs", -np.inf, 0), ("weights", 0, 1), ("log_tails", -np.inf, -np.inf))


class RowConverter:
    """Turns a teacher's rows into rows in the student's vocabulary.

    A row without a target has the student's own token as its support, and is marked. The rows of `sampled` and
    `hybrid` stay unbiased, which a quotient or a product of draws would not be: they have targets where STRICT or
    EXACT alone, and what the student has no token for leaves their sum. So have those of `hidden`, which meet the
    teacher's head, and with it `table`, on the student's device.

    Args:
        teacher: The teacher's vocabulary.
        student: The student's vocabulary.
        student_end: The id with which the student ends a turn.
        kind: Of the cache.
        temperatures: That the cache stores.
        alignment: strict or bytes.
        spans: What becomes of SPANNING rows in `bytes`: chain corrects them, at temperature 1; skip leaves them
            without a target.
        whitespace: Keep, or skip, rows whose token in the student's vocabulary is white space alone.

    Attributes:
        table: For each teacher id the student's on exact rows, int32 [V]; -1 for none.
        temperatures: For which converted rows have log-probabilities.
    """

    def __init__(
        self,
        teacher: VocabularyBytes,
        student: VocabularyBytes,
        student_end: int,
        *,
        kind: Kind,
        temperatures: Sequence[float],
        alignment: Literal["strict", "bytes"] = "strict",
        spans: Spans = "chain",
        whitespace: Whitespace = "keep",
    ):
        self._map = TokenMap(teacher, student, student_end)
        self._kind, self._skips_space = kind, whitespace == "skip"
        self.table = self._map.equal_tokens if alignment == "strict" else self._map.prefix_tokens
        self._classes = [STRICT] if alignment == "strict" else [STRICT, EXACT]
        is_sparse = kind in ("top_k", "adaptive")
        if alignment == "bytes" and is_sparse:
            self._classes += [CONDITIONAL, SPANNING] if spans == "chain" else [CONDITIONAL]
        self.temperatures = (1.0,) if SPANNING in self._classes else tuple(temperatures)
        self._planes = [list(temperatures).index(temperature) for temperature in self.temperatures]

    def convert(self, rows: Arrays, alignments: Sequence[Alignment], labels: np.ndarray) -> Arrays:
        """Converts the rows of a batch.

        Args:
            rows: What `decode_rows` gives of the teacher's completions, one after the other.
            alignments: Of each completion, in this order.
            labels: The student's tokens of the completions, int32 [N].

        Returns:
            `has_target` bool [N], and, of top_k and adaptive, `support` int32 [N, K], -1 where unused, `log_probs`
            float32 [N, K, T], -inf there, softened by each of `temperatures`, and `log_tails` float32 [N, T], each
            row's masses adding up to 1; of sampled and hybrid, `support` and `weights` float32 [N, m], adding up to 1
            at most; of hidden, `hidden` float32 [N, d].
        """
        classes, governing, out, stops = _join_alignments(alignments)
        assert len(classes) == len(labels) and stops[-1:].sum() == len(rows["token_ids"]), "rows of other tokens"
        has_target = np.isin(classes, self._classes)
        if self._skips_space:
            has_target &= ~self._map.is_space[labels]
        row = np.where(has_target, governing, 0)
        if (unknown := np.isneginf(rows["label_log_prob"])).any():
            # Such a token is somewhere in the tail of what an endpoint returned: no quotient or product is known.
            in_completion = np.add.reduceat(unknown, [0, *stops[:-1]])[np.searchsorted(stops, row, side="right")] > 0
            has_target &= ~np.where(classes == SPANNING, in_completion, (classes == CONDITIONAL) & unknown[row])
            row = np.where(has_target, row, 0)
        if self._kind == "hidden":
            return {"has_target": has_target, "hidden": rows["hidden"][row]}
        if "weights" in rows:
            planes = self._convert_weights(rows, row)
            has_cells = (planes["support"] >= 0).any(1)
            # Whether a row counts does not depend on what was drawn, or the mean over draws would.
            planes["support"][~has_cells, 0] = labels[~has_cells]
        else:
            planes = self._convert_log_probs(rows, row, np.where(has_target, classes, STRICT), out, stops)
            # Without one of the student's tokens there is nothing to renormalize.
            has_target &= (planes["support"] >= 0).any(1)
        empty = ~has_target
        for name, rest, first in _FILLERS:
            if name in planes:
                planes[name][empty] = rest
                planes[name][empty, 0] = labels[empty] if first is None else first
        return planes | {"has_target": has_target}

    def _convert_weights(self, rows: Arrays, row: np.ndarray) -> Arrays:
        support, weights = rows["support"][row], rows["weights"][row]
        ids = np.where(support < 0, -1, self.table[support])
        weights[ids < 0] = 0
        place, leader = find_duplicates(ids)
        np.add.at(weights.reshape(-1), leader, weights.reshape(-1)[place])
        ids.reshape(-1)[place], weights.reshape(-1)[place] = -1, 0
        return {"support": ids, "weights": weights}

    def _convert_log_probs(
        self, rows: Arrays, row: np.ndarray, classes: np.ndarray, out: np.ndarray, stops: np.ndarray
    ) -> Arrays:
        conditional, spanning = (np.flatnonzero(classes == wanted) for wanted in (CONDITIONAL, SPANNING))
        chain = Chain.find(self._map, rows, row[spanning], stops[np.searchsorted(stops, row[spanning], side="right")])
        width = rows["support"].shape[1] + (len(conditional) + len(spanning) > 0) + chain.width
        tokens = Softened.of(rows, row, width, self.temperatures, self._planes)
        tokens.add_realised(rows, row, np.concatenate([conditional, spanning]))
        # An unused place reads the table's last entry.
        ids = np.where(tokens.support < 0, -1, self.table[tokens.support])
        if len(conditional):
            ids[conditional] = tokens.keep_prefixed(
                self._map, rows["token_ids"][row[conditional]], conditional, out[conditional]
            )
        tokens.drop_unmapped(ids)
        chain.place(ids, spanning, width)
        place, leader = find_duplicates(ids)
        tokens.merge(place, leader)
        ids.reshape(-1)[place] = -1
        chain.move(ids, spanning, tokens)
        return {
            "support": ids,
            "log_probs": np.stack(tokens.log_probs, axis=-1),
            "log_tails": np.stack(tokens.log_tails, axis=-1),
        }


def convert_chunks(rows: Arrays, alignments: Sequence[Alignment]) -> Arrays:
    """Sums what the teacher gives the text of each span with common ends.

    Args:
        rows: `label_log_prob` of the teacher's completions, one after the other.
        alignments: Of each completion, in this order.

    Returns:
        `chunks` int32 [N]: the number of each of the student's rows' span, -1 for none, or where the teacher's
        probability of one of its tokens is unknown (-inf); `chunk_log_probs` float32 [C].
    """
    chunks: list[np.ndarray] = []
    teacher_chunks: list[np.ndarray] = []
    first = 0
    for alignment in alignments:
        for parts, own in ((chunks, alignment.chunks), (teacher_chunks, alignment.teacher_chunks)):
            parts.append(np.where(own < 0, -1, own + first))
        first += int(max(alignment.chunks.max(), alignment.teacher_chunks.max())) + 1
    own = np.concatenate(teacher_chunks)
    log_probs = np.bincount(own[own >= 0], rows["label_log_prob"][own >= 0], minlength=first)
    numbers = np.concatenate(chunks)
    if (is_unknown := np.isneginf(log_probs)).any():
        numbers[(numbers >= 0) & is_unknown[numbers]] = -1
        log_probs[is_unknown] = 0
    return {
        "chunks": numbers.astype(np.int32),
        "chunk_log_probs": log_probs.astype(rows["label_log_prob"].dtype),
    }


def _join_alignments(alignments: Sequence[Alignment]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows' classes, governing rows in the batch, bytes out, and where each completion's rows stop."""
    stops = np.cumsum([len(alignment.teacher_chunks) for alignment in alignments])
    starts = [0, *stops[:-1]]
    governing = [alignment.governing + start for alignment, start in zip(alignments, starts, strict=True)]
    classes, out = ([getattr(alignment, name) for alignment in alignments] for name in ("classes", "out"))
    return np.concatenate(classes), np.concatenate(governing), np.concatenate(out), stops
