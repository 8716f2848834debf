"""What each kind of logit cache costs, in bytes, and what it loses, in KL and in the gradient of a student's head."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.batches.packing import PredictionSampler, collate_examples
from datamodules.examples.tokenization import Example
from datamodules.logit_cache.codec import decode_rows, encode_rows
from datamodules.logit_cache.format import DEFAULTS, OTHER_FILES, CacheDescription, Sparsity
from datamodules.logit_cache.writer import LogitCacheWriter
from lightning_modules.model.row_head import RowHead
from lightning_modules.teacher.sparsify import reduce_rows
from studies.text_table import format_table

BYTE_TICKS = (10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Quality:
    """One kind on one text.

    Attributes:
        name: The kind and its settings.
        bytes_per_token: Of the cache's files, all in, but for a hidden cache's head.
        kl_mean: KL(p || decoded), in nats, over the support and one bucket for the rest; nan for draws, which are
            unbiased, not near.
        kl_p99: Its 99th percentile over tokens.
        angle: Degrees between the summed gradient of the student's head and that of the full distribution.
        support_mean: Mean number of token ids in a row; nan for hidden.
    """

    name: str
    bytes_per_token: float
    kl_mean: float
    kl_p99: float
    angle: float
    support_mean: float

    @classmethod
    def format_all(cls, qualities: list["Quality"], title: str) -> str:
        """Returns a Markdown table."""
        rows = []
        for q in qualities:
            kls = ["–" if math.isnan(kl) else f"{kl:.1e}" for kl in (q.kl_mean, q.kl_p99)]
            ids = "–" if math.isnan(q.support_mean) else f"{q.support_mean:.1f}"
            rows.append([q.name, f"{q.bytes_per_token:.1f}", ids, *kls, f"{q.angle:.2f}°"])
        columns = [title, "bytes/token", "ids", "KL mean", "KL p99", "gradient angle"]
        return format_table(columns, rows, right=range(1, 6))


@dataclass(frozen=True)
class Truth:
    """One example's exact rows.

    Attributes:
        example: The example.
        logits_NV: The teacher's.
        hidden_ND: The teacher's last hidden states.
        labels_N: The completion.
        q_NV: The student's probabilities.
        student_ND: The student's last hidden states.
    """

    example: Example
    logits_NV: Tensor
    hidden_ND: Tensor
    labels_N: Tensor
    q_NV: Tensor
    student_ND: Tensor


def compute_truths(teacher: RowHead, student: RowHead, examples: list[Example], vocabulary: int) -> Iterator[Truth]:
    """Yields each example's exact rows, of the tokenizer's vocabulary."""
    lengths = [len(example.token_ids) for example in examples]
    for numbers in PredictionSampler(lengths, 2048, rank=0, world_size=1):
        batch = collate_examples([examples[number] for number in numbers])
        hidden_ND, student_ND = teacher.run(batch).hidden_ND, student.run(batch).hidden_ND
        start = 0
        for number in numbers:
            stop = start + len(examples[number].token_ids) - examples[number].num_prompt_tokens
            rows = slice(start, stop)
            q_NV = student.project(student_ND[rows])[:, :vocabulary].softmax(-1)
            logits_NV = teacher.project(hidden_ND[rows])[:, :vocabulary]
            yield Truth(examples[number], logits_NV, hidden_ND[rows], batch["labels"][rows], q_NV, student_ND[rows])
            start = stop


def compute_kl(rows: dict[str, np.ndarray], logits_NV: Tensor, teacher: RowHead) -> Tensor:
    """Returns KL(p || decoded) [N], float64, nats, over the support and one bucket, or over all if rows are hidden.

    Args:
        rows: Decoded, but not draws.
        logits_NV: The teacher's own.
        teacher: Projects hidden states.
    """
    log_p_NV = logits_NV.double().log_softmax(-1)
    if "hidden" in rows:
        hidden_ND = torch.from_numpy(rows["hidden"]).to(teacher.model.dtype)
        log_r_NV = teacher.project(hidden_ND)[:, : log_p_NV.shape[1]].double().log_softmax(-1)
        return (log_p_NV.exp() * (log_p_NV - log_r_NV)).sum(-1)
    support_NK, log_r_NK = torch.from_numpy(rows["support"]).long(), torch.from_numpy(rows["log_probs"]).double()
    used_NK = support_NK >= 0
    log_p_NK = log_p_NV.gather(1, support_NK.clamp(min=0))
    inside_N = torch.where(used_NK, log_p_NK.exp() * (log_p_NK - log_r_NK), 0).sum(-1)
    log_outside_N = log_p_NV.masked_fill(_mark(rows["support"], log_p_NV), -torch.inf).logsumexp(-1)
    log_tau_N = torch.from_numpy(rows["log_tails"][:, 0]).double()
    return inside_N + torch.where(log_outside_N.isneginf(), 0, log_outside_N.exp() * (log_outside_N - log_tau_N))


def _mark(support: np.ndarray, like_NV: Tensor) -> Tensor:
    """Returns bool [N, V], true in the support."""
    support_NK = torch.from_numpy(support)
    counts_NV = torch.zeros(like_NV.shape).scatter_add(1, support_NK.clamp(min=0), (support_NK >= 0).float())
    return counts_NV > 0


def compute_gradient(rows: dict[str, np.ndarray], q_NV: Tensor, teacher: RowHead) -> Tensor:
    """Returns the gradient [N, V] of forward KL, with one bucket for the rest, at the student's logits."""
    if "hidden" in rows:
        return q_NV - teacher.project(torch.from_numpy(rows["hidden"]))[:, : q_NV.shape[1]].softmax(-1)
    support_NK = torch.from_numpy(rows["support"]).long().clamp(min=0)
    if "weights" in rows:
        return q_NV.scatter_add(1, support_NK, -torch.from_numpy(rows["weights"]))
    r_NV = torch.zeros_like(q_NV).scatter_add(1, support_NK, torch.from_numpy(rows["log_probs"]).exp())
    mask_NV = _mark(rows["support"], q_NV)
    kappa_N = q_NV.masked_fill(mask_NV, 0).sum(-1).clamp(min=1e-30)
    tau_N = torch.from_numpy(rows["log_tails"][:, 0]).exp()
    return torch.where(mask_NV, q_NV - r_NV, q_NV * (1 - tau_N / kappa_N)[:, None])


class Variant:
    """One kind being measured: writes a real cache, and compares what is decoded with the truth.

    Args:
        name: What the table calls it.
        made: What is kept.
        folder: Receives the cache.
        id_map: int64 [V]: token ids as the cache sees them; None leaves them.
        copies: How often each example is written; more than once, its id gets a number.
    """

    def __init__(
        self, name: str, made: CacheDescription, folder: Path, id_map: np.ndarray | None = None, copies: int = 1
    ):
        self.name, self.made, self.folder, self.id_map, self.copies = name, made, folder, id_map, copies
        self.writer = LogitCacheWriter(folder, made)
        self.writer.open()
        self.kls: list[Tensor] = []
        self.supports: list[Tensor] = []
        self.gradient_VD: Tensor | None = None

    def add(self, truth: Truth, teacher: RowHead) -> None:
        """Keeps one example's rows, and compares them."""
        ids, counts = [truth.example.id], [len(truth.labels_N)]
        [rows] = reduce_rows([truth.logits_NV.clone()], truth.labels_N, self.made, ids, counts)
        if self.made.sparsity.kind == "hidden":
            rows["hidden"] = truth.hidden_ND.float().numpy()
        if self.id_map is not None:
            rows["support"] = np.where(rows["support"] < 0, -1, self.id_map[rows["support"]])
            rows["token_ids"] = self.id_map[rows["token_ids"]]
        if self.copies == 1:
            self.writer.add([(truth.example, rows)])
        else:
            ids = [f"{truth.example.id}-{copy}" for copy in range(self.copies)]
            self.writer.add([(replace(truth.example, id=identifier), rows) for identifier in ids])
        decoded = decode_rows(self.made, encode_rows(self.made, rows))
        if self.id_map is not None:
            back = np.zeros(self.made.vocabulary, np.int64)
            back[self.id_map] = np.arange(len(self.id_map))
            decoded["support"] = np.where(decoded["support"] < 0, -1, back[decoded["support"]])
        if "support" in decoded:
            self.supports.append(torch.from_numpy((decoded["support"] >= 0).sum(1)).double())
        gradient_VD = compute_gradient(decoded, truth.q_NV, teacher).T @ truth.student_ND
        self.gradient_VD = gradient_VD if self.gradient_VD is None else self.gradient_VD + gradient_VD
        if "weights" not in decoded:
            self.kls.append(compute_kl(decoded, truth.logits_NV, teacher))

    def finish(self, tokenizer: Any, full_VD: Tensor) -> Quality:
        """Ends the cache; `full_VD` is the gradient of the full distribution."""
        self.writer.flush()
        head = {"weight": torch.zeros(1, 1), "scale": 1.0, "softcap": None}
        self.writer.finish(tokenizer, {}, head if self.made.sparsity.kind == "hidden" else None)
        self.writer.close()
        kl_N = torch.cat(self.kls) if self.kls else torch.tensor([math.nan])
        assert self.gradient_VD is not None
        # Half the angle's sine is half the distance of the unit vectors; a cosine near 1 has no digits left.
        distance = (self.gradient_VD / self.gradient_VD.norm() - full_VD / full_VD.norm()).norm()
        angle = math.degrees(2 * math.asin(min(1.0, distance.item() / 2)))
        rows = sum(shard.bounds["rows"][-1] for shard in self.writer.find_shards())
        size = sum(path.stat().st_size for path in self.folder.iterdir() if path.name not in OTHER_FILES.values())
        support_mean = torch.cat(self.supports).mean().item() if self.supports else math.nan
        return Quality(self.name, size / rows, kl_N.mean().item(), kl_N.quantile(0.99).item(), angle, support_mean)


def list_sparsities(vocabulary: int) -> dict[str, Sparsity]:
    """Returns the kinds of the published curve by name, those that make sense of such a vocabulary."""
    made = {
        **{f"top_k {k}": Sparsity.resolve("top_k", top_k=k) for k in (8, 16, 32, 64, 128)},
        "top_k 64, float16": Sparsity.resolve("top_k", values="float16"),
        **{f"adaptive {m}": Sparsity.resolve("adaptive", mass=m) for m in (0.9, 0.99, 0.999)},
        **{f"sampled {n}": Sparsity.resolve("sampled", draws=n) for n in (16, 50, 200)},
        **{f"hybrid {k} + {k}": Sparsity.resolve("hybrid", top_k=k, draws=k) for k in (8, 16, 32)},
        "hidden, float16": Sparsity.resolve("hidden"),
    }
    return {name: sparsity for name, sparsity in made.items() if (sparsity.top_k or 1) <= vocabulary}


def plot_qualities(curves: dict[str, list[Quality]], path: Path) -> None:
    """Draws bytes per token against KL and gradient angle, one row of axes a text."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(curves), 2, figsize=(13, 4.5 * len(curves)), squeeze=False, layout="constrained")
    for row, (title, qualities) in zip(axes, curves.items(), strict=True):
        for axis, attribute, label in zip(
            row,
            ("kl_mean", "angle"),
            ("KL(p || decoded), nats", "gradient angle to the full distribution, degrees"),
            strict=True,
        ):
            # Labels alone are no distribution to be near to.
            for kind, marker in zip([kind for kind in DEFAULTS if kind != "labels"], "osv^D", strict=True):
                own = [q for q in qualities if q.name.startswith(kind) and not math.isnan(vars(q)[attribute])]
                values = [max(vars(q)[attribute], 1e-9) for q in own]
                axis.plot([q.bytes_per_token for q in own], values, marker, label=kind)
                for q, value in zip(own, values, strict=True):
                    place = (q.bytes_per_token, value)
                    text = q.name.removeprefix(kind).strip(", ")
                    axis.annotate(text, place, fontsize=7, xytext=(4, 3), textcoords="offset points")
            axis.set(xscale="log", yscale="log", xlabel="bytes per token", ylabel=label, title=title)
            axis.set_xticks(BYTE_TICKS, [str(tick) for tick in BYTE_TICKS])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
