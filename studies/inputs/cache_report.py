"""What a logit cache holds, as a table and as histograms; and how near it is to its teacher, run again on a sample."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from datamodules.batches.packing import collate_examples
from datamodules.distillation import RationaleDataModule
from datamodules.examples.selection import RationaleFilters
from datamodules.examples.source import ExampleEncoding
from datamodules.logit_cache.reader import LogitCache
from datamodules.model_sources import name_model
from datamodules.tasks.questions import load_questions
from lightning_modules.model.pretrained import identify_weights, load_causal_lm
from lightning_modules.model.row_head import RowHead
from studies.inputs.cache_quality import compute_kl
from studies.text_table import format_table

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


@dataclass
class CacheReport:
    """A cache's facts, and one number a row of each quantity that its kind has.

    Attributes:
        facts: Text by name.
        rows: float64 [rows] by quantity, of the rows where it is known.
    """

    facts: dict[str, str] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        facts = format_table(["cache", ""], list(self.facts.items()))
        columns = ["per token", "mean", *(f"{100 * quantile:.0f} %" for quantile in QUANTILES)]
        rows = [
            [name, *(f"{number:.3g}" for number in (values.mean(), *np.quantile(values, QUANTILES)))]
            for name, values in self.rows.items()
        ]
        return f"{facts}\n\n{format_table(columns, rows, right=range(1, len(columns)))}"

    def plot(self, path: Path) -> None:
        """Draws a histogram of each quantity."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        columns = 3
        height = -(-len(self.rows) // columns)
        figure, axes = pyplot.subplots(height, columns, figsize=(12, 3 * height), squeeze=False, layout="constrained")
        for axis in axes.flat[len(self.rows) :]:
            axis.remove()
        for axis, (name, values) in zip(axes.flat, self.rows.items(), strict=False):
            is_small = name.startswith(("tail", "KL"))
            shown = np.log10(np.maximum(values, 1e-9)) if is_small else values
            axis.hist(shown, bins=60)
            axis.set(xlabel=f"log10 of {name}" if is_small else name, ylabel="tokens", yscale="log")
        figure.suptitle(
            f"{self.facts['teacher']}: {self.facts['kept']}, {self.facts['bytes per token']} bytes per token"
        )
        figure.savefig(path, dpi=100)
        pyplot.close(figure)


def inspect_cache(cache: LogitCache, questions: str | None = None) -> CacheReport:
    """Reads a whole cache.

    Args:
        cache: The cache.
        questions: Its questions' source, from which their tasks are known; None leaves the tasks out.

    Raises:
        ValueError: A byte that is read has changed.
    """
    made, report = cache.description, CacheReport()
    size = sum(path.stat().st_size for path in cache.folder.iterdir() if not path.name.startswith("."))
    settings = {name: value for name, value in vars(made.sparsity).items() if value is not None}
    report.facts = {
        "teacher": made.teacher,
        "revision": f"{made.revision}, run in {made.dtype}",
        "prompt": made.prompt_id,
        "kept": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "temperatures": ", ".join(f"{temperature:g}" for temperature in made.temperatures)
        or ("none" if made.sparsity.kind == "labels" else "any"),
        "vocabulary": f"{made.vocabulary:,}, {'with' if cache.manifest.get('token_bytes') else 'without'} its bytes",
        "examples": f"{len(cache):,}",
        "tokens": f"{cache.num_rows:,}",
        "bytes": f"{size:,}",
        "bytes per token": f"{size / cache.num_rows:.1f}",
    }
    if questions is not None:
        tasks = {question.id: question.task for question in load_questions(questions)}
        # An example's id is `{question id}/{teacher}/{sample}`, and either may hold a slash.
        counts = Counter(
            next((tasks[question] for question in _list_prefixes(identifier) if question in tasks), "unknown")
            for identifier in cache
        )
        report.facts["tasks"] = ", ".join(f"{task} ({count:,} examples)" for task, count in counts.most_common())
    parts: dict[str, list[np.ndarray]] = {}
    num_unknown = 0
    for _, rows in cache.read_all():
        is_known = ~np.isneginf(rows["label_log_prob"])
        num_unknown += int((~is_known).sum())
        found = {"log-probability of the token": rows["label_log_prob"][is_known]}
        if "support" in rows:
            found["support size k"] = (rows["support"] >= 0).sum(1)
        if "log_probs" in rows:
            log_probs = np.concatenate([rows["log_probs"], rows["log_tails"][:, :1]], axis=1).astype(np.float64)
            p = np.exp(log_probs)
            found["covered mass"] = p[:, :-1].sum(1)
            found["tail mass"] = p[:, -1]
            found["entropy, the tail as one token (nats)"] = -(p * np.where(p > 0, log_probs, 0)).sum(1)
        for name, values in found.items():
            parts.setdefault(name, []).append(values.astype(np.float64))
    if num_unknown:
        report.facts["tokens of unknown probability"] = f"{num_unknown:,}"
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    report.rows = {name: values for name, values in joined.items() if len(values)}
    return report


def _list_prefixes(identifier: str) -> list[str]:
    pieces = identifier.split("/")
    return ["/".join(pieces[:number]) for number in range(len(pieces) - 1, 0, -1)]


def measure_error(
    cache: LogitCache,
    teacher: str,
    revision: str | None,
    questions: str,
    rationales: list[str],
    sample: int,
    shown_rationales: str | None = None,
) -> np.ndarray:
    """Runs the teacher again and returns KL(p || decoded) of each row of a seeded sample of examples, in nats.

    Args:
        cache: The cache.
        teacher: Its teacher.
        revision: Of the teacher.
        questions: Their source.
        rationales: The files of the texts.
        sample: How many examples are read.
        shown_rationales: The file of those that the cache's prompt showed the teacher.

    Raises:
        ValueError: The teacher or the texts are not the cache's, or its rows are draws, which are near nothing.
    """
    made = cache.description
    if made.sparsity.draws is not None or made.sparsity.kind == "labels":
        what = "draws" if made.sparsity.draws is not None else "no distributions"
        raise ValueError(f"{cache.folder}: rows of kind {made.sparsity.kind} are {what}; there is no error to measure")
    if (name_model(teacher), identify_weights(teacher, revision)) != (made.teacher, made.revision):
        raise ValueError(f"{teacher}: is not the teacher of {cache.folder}, {made.teacher!r} of {made.revision}")
    data = RationaleDataModule(
        teacher,
        questions,
        rationales,
        prompt=made.prompt_id.rpartition("-")[0],
        encoding=ExampleEncoding(max_length=1 << 30, revision=revision),
        filters=RationaleFilters(correct_only=False),
        shown_rationales=shown_rationales,
    )
    data.setup("predict")
    examples = [example for example in data.examples if example.id in cache]
    if not examples:
        raise ValueError(f"{cache.folder}: holds none of the {len(data.examples)} examples of {', '.join(rationales)}")
    cache.check(teacher, data.tokenizer, data.prompt.id, examples)
    order = np.random.default_rng(0).permutation(len(examples))[:sample]
    head = RowHead(load_causal_lm(teacher, revision, made.dtype).eval())
    kls = []
    with torch.no_grad():
        for number in sorted(order.tolist()):
            hidden_ND = head.run(collate_examples([examples[number]])).hidden_ND
            kls.append(compute_kl(cache.read(examples[number]), head.project(hidden_ND), head).numpy())
    return np.concatenate(kls)
