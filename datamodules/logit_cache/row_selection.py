"""Which of a teacher's rows teach: those where another teacher's most probable token is another, or is the same.

A hidden preference is said to pass from teacher to student through few tokens, those where teachers with different
preferences would write different ones (arXiv 2509.23886): a student that learns the teacher's distributions there
alone, or everywhere else, tells.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from datamodules.examples.store import ExampleView
from datamodules.examples.tokenization import Example
from datamodules.logit_cache.codec import Arrays
from datamodules.logit_cache.format import CacheDescription
from datamodules.logit_cache.mixture import RowReader, soften_rows

RowKind = Literal["divergent", "agreeing"]
# Of the rows of two teachers; `unknown` where one of them says nothing, as aligned rows may.
CLASSES = ("divergent", "agreeing", "unknown")


class SelectedRows:
    """Reads a teacher's rows, of which only some are a target.

    Args:
        reader: Of the teacher's rows, sparse ones.
        kept: By example id, bool [N]; which rows are a target if they are one to the reader.
    """

    def __init__(self, reader: RowReader, kept: Mapping[str, np.ndarray]):
        self.reader, self.kept = reader, kept

    @property
    def description(self) -> CacheDescription:
        """What the teacher's rows depend on."""
        return self.reader.description

    def read(self, *examples: Example) -> Arrays:
        """Returns the rows, softened as `mix_rows` has them, with `has_target` bool [N]."""
        rows = self.reader.read(*examples)
        kept = np.concatenate([self.kept[example.id] for example in examples])
        return {
            "support": rows["support"],
            "log_probs": soften_rows(rows, self.description.temperatures).astype(rows["log_tails"].dtype),
            "log_tails": rows["log_tails"],
            "has_target": kept & rows.get("has_target", np.ones(len(kept), bool)),
        }


def find_most_probable(rows: Arrays) -> np.ndarray:
    """Returns each row's most probable token of the support at the first stored temperature; -1 where nothing is said.

    Args:
        rows: As `decode_rows` gives them, or softened and with `has_target`.

    Returns:
        int [N].
    """
    log_probs = rows["log_probs"] if rows["log_probs"].ndim == 2 else rows["log_probs"][..., 0]
    best = np.take_along_axis(rows["support"], log_probs.argmax(1)[:, None], axis=1)[:, 0]
    return np.where(rows.get("has_target", True), best, -1)


def select_rows(
    kind: RowKind, readers: Mapping[str, RowReader], against: Mapping[str, RowReader], examples: ExampleView
) -> tuple[dict[str, RowReader], dict[str, float]]:
    """Returns, by example id, what reads the rows that teach, and the share of all rows that is of each class.

    Both teachers' rows are read once, and which are of the kind is kept.

    Args:
        kind: Which rows teach.
        readers: By example id, of the teacher's rows.
        against: By example id, of the other teacher's.
        examples: All.

    Raises:
        ValueError: No row is of the kind.
    """
    kept: dict[str, np.ndarray] = {}
    counts = np.zeros(len(CLASSES), np.int64)
    for example in examples:
        own, other = (find_most_probable(by_id[example.id].read(example)) for by_id in (readers, against))
        classes = np.where((own < 0) | (other < 0), 2, own == other)
        counts += np.bincount(classes, minlength=len(CLASSES))
        kept[example.id] = classes == CLASSES.index(kind)
    selected = {id(reader): SelectedRows(reader, kept) for reader in readers.values()}
    shares = dict(zip(CLASSES, (counts / counts.sum()).tolist(), strict=True))
    if not shares[kind]:
        raise ValueError(f"data.rows {kind}: no token of the {len(examples)} completions is so; nothing would teach")
    return {identifier: selected[id(reader)] for identifier, reader in readers.items()}, shares
