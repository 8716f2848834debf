"""Metrics of finished predictions, task by task: of answers, of rationales, and against teachers' rationales.

Nothing here asks a model, but BERTScore its own. Each question is one record, whatever the processes that answered.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score
from torchmetrics.functional.text import bert_score

from datamodules.answers.extractors import EXTRACTORS, MORE_EXTRACTORS
from datamodules.files.tables import read_table
from datamodules.tasks.records import LETTERS
from datamodules.text.plain_text import align_columns
from datamodules.text.words import count_words, separate_characters
from lightning_modules.evaluation.fidelity import LanguageIdentifier
from lightning_modules.evaluation.groups import group_by_task
from lightning_modules.evaluation.proportions import group_interval, number_groups
from lightning_modules.evaluation.text_similarity import compare_texts

# The names of lm-evaluation-harness.
LIKELIHOOD_METRICS = {"likelihood": "acc", "likelihood_norm": "acc_norm", "likelihood_bytes": "acc_bytes"}
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Estimate:
    """A metric's value.

    Attributes:
        value: The value.
        n: Of how many questions, or of what else the metric's name says.
        low: Of a share's 95 % interval by Wilson's method, over groups of questions where there are; None of others.
        high: Likewise.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None


Metrics = dict[str, Estimate]


def estimate_share(hits: Iterable[bool], groups: Sequence[str | None] = ()) -> Estimate:
    """Returns the share of hits, of one at least, with its interval: over groups where some have one in common."""
    values = np.array([*hits], dtype=float)
    return Estimate(float(values.mean()), values.size, *group_interval(values, number_groups(groups)))


def read_accuracy(predictions: Path) -> Estimate | None:
    """Returns the accuracy that a file of predictions has, by the extractor that reads every style alike; or None."""
    if not predictions.is_file():
        return None
    table = read_table(predictions)
    groups = table["group"].to_pylist() if "group" in table.column_names else []
    return estimate_share(table["correct_neutral"].to_pylist(), groups)


def count_share(records: Sequence[dict[str, Any]], is_hit: Callable[[dict[str, Any]], bool]) -> Estimate:
    """Returns the share of records of which something is true, of one at least."""
    return estimate_share(map(is_hit, records), [record.get("group") for record in records])


def measure(
    records: Sequence[dict[str, Any]],
    references: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    bert_model: str | None = None,
    identifier: LanguageIdentifier | None = None,
) -> dict[str, Metrics]:
    """Returns the metrics of each task, or of each split where a task has several, by name.

    Args:
        records: Of PREDICTION_SCHEMA.
        references: By question id and teacher, the texts of rationales, without their answer sentences.
        bert_model: Local folder of the model that BERTScore embeds with; None leaves BERTScore out.
        identifier: Tells a rationale's language; None leaves its fidelity out.

    Raises:
        ValueError: A question is there twice.
    """
    seen: set[tuple[str, str]] = set()
    for record in records:
        key = (record["task"], record["question_id"])
        if key in seen:
            raise ValueError(f"question {record['question_id']!r} of {record['task']} is predicted twice")
        seen.add(key)
    return {
        task: {
            **measure_answers(own),
            **measure_rationales(own),
            **measure_against(own, references or {}, bert_model),
            **measure_references(own),
            **(measure_fidelity(own, identifier) if identifier else {}),
        }
        for task, own in group_by_task(records).items()
    }


def measure_answers(records: Sequence[dict[str, Any]]) -> Metrics:
    """Returns how many answers are found, and how many are right.

    By extractor: `extraction_rate`, `accuracy`, and, where answers are options, `macro_f1`: the mean F1 of the options
    that are right somewhere; an answer that is not found is of no option. `same_notation`, where it differs from
    `accuracy`: how many answers are right by their normal form, without the grader of expressions. `acc`, `acc_norm`,
    `acc_bytes`: accuracy of the likeliest option (see LIKELIHOODS); `ece`: expected calibration error in 15 bins of
    equal width (Guo et al. 2017, arXiv 1706.04599), and `brier`: squared distance from the right option, summed over
    the options (Brier 1950), both of the options' likelihoods, normalised to probabilities. `accuracy_NAME_kept`, where
    MGSM-Rev2 replaced some of the questions: of the others.
    """
    metrics: Metrics = {}
    graded = [record for record in records if record["gold"] is not None]
    has_options = bool(graded) and all(record["gold"] in LETTERS for record in graded)
    for name in (*EXTRACTORS, *(name for name in MORE_EXTRACTORS if f"answer_{name}" in records[0])):
        answers = [record[f"answer_{name}"] is not None for record in records]
        metrics[f"extraction_rate_{name}"] = estimate_share(answers, [record.get("group") for record in records])
        if graded:
            metrics[f"accuracy_{name}"] = count_share(graded, itemgetter(f"correct_{name}"))
            kept = [record for record in graded if not record.get("replaced_in_rev2")]
            if 0 < len(kept) < len(graded):
                metrics[f"accuracy_{name}_kept"] = count_share(kept, itemgetter(f"correct_{name}"))
            same = [record[f"answer_{name}"] == record["gold"] for record in graded]
            if same != [record[f"correct_{name}"] for record in graded]:
                metrics[f"same_notation_{name}"] = estimate_share(same, [record.get("group") for record in graded])
        if has_options:
            f1 = macro_f1([record["gold"] for record in graded], [record[f"answer_{name}"] for record in graded])
            metrics[f"macro_f1_{name}"] = Estimate(f1, len(graded))
    if graded:
        metrics["exact_match"] = count_share(graded, itemgetter("exact_match"))
    scored = [record for record in graded if record["option_log_likelihoods"]]
    if scored:
        for name, harness_name in LIKELIHOOD_METRICS.items():
            metrics[harness_name] = count_share(scored, itemgetter(f"correct_{name}"))
        probabilities_NC = stack_probabilities([record["option_log_likelihoods"] for record in scored])
        gold_N = torch.tensor([LETTERS.index(record["gold"]) for record in scored])
        options = probabilities_NC.shape[1]
        # torchmetrics gives a confidence of 1 a bin of its own.
        below_NC = probabilities_NC.clamp(max=1 - 1e-6)
        ece = multiclass_calibration_error(below_NC, gold_N, options, CALIBRATION_BINS, norm="l1").item()
        metrics["ece"] = Estimate(ece, len(scored))
        one_hot_NC = torch.nn.functional.one_hot(gold_N, options)
        metrics["brier"] = Estimate((probabilities_NC - one_hot_NC).square().sum(-1).mean().item(), len(scored))
    return metrics


def macro_f1(gold: Sequence[str], answers: Sequence[str | None]) -> float:
    """Returns the mean F1 over the letters that are gold somewhere; None is no letter."""
    none = len(LETTERS)
    gold_N = torch.tensor([LETTERS.index(letter) for letter in gold])
    answers_N = torch.tensor([none if letter is None else LETTERS.index(letter) for letter in answers])
    f1_C = multiclass_f1_score(answers_N, gold_N, num_classes=none + 1, average="none")
    mean: float = f1_C[gold_N.unique()].mean().item()
    return mean


def stack_probabilities(log_likelihoods: Sequence[Sequence[float]]) -> Tensor:
    """Returns each question's option probabilities, float64 [N, most options]; an option that is not there has 0."""
    rows = [torch.tensor(row, dtype=torch.float64) for row in log_likelihoods]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-math.inf).softmax(-1)


def get_rationale(record: dict[str, Any]) -> str:
    """Returns a completion without the sentence that states its answer."""
    rationale: str = record["completion"][: record["rationale_length"]]
    return rationale


def measure_rationales(records: Sequence[dict[str, Any]]) -> Metrics:
    """Returns what the rationales are like.

    `completion_tokens` of the student's tokenizer and `rationale_words`, both means (words are between spaces; of
    scripts without them, each character); `fertility`, tokens a word of all completions (Rust et al. 2021, arXiv
    2012.15613), which says what a language costs; `truncated`, the share that was
    cut off; `stated`, the share that ends with a sentence that states an answer; `consistency`, of those whose
    reasoning names an answer without that sentence, too, by the same extractor, the share where both are the same;
    `distinct_1` and `distinct_2`, different n-grams by all n-grams of all rationales (Li et al. 2016, arXiv
    1510.03055; falls with their number); `votes`, the share of samples that agree with the answer that counts.
    """
    words = [separate_characters(get_rationale(record)).split() for record in records]
    metrics = {
        "completion_tokens": Estimate(fmean(record["num_completion_tokens"] for record in records), len(records)),
        "rationale_words": Estimate(fmean(map(len, words)), len(records)),
        **_measure_fertility(records),
        "truncated": count_share(records, lambda record: record["finish_reason"] == "length"),
        "stated": count_share(records, lambda record: record["sentence_answer"] is not None),
    }
    both = [record for record in records if record["rationale_answer"] and record["sentence_answer"]]
    if both:
        metrics["consistency"] = count_share(
            both, lambda record: record["rationale_answer"] == record["sentence_answer"]
        )
    for n in (1, 2):
        ngrams = [tuple(own[place : place + n]) for own in words for place in range(len(own) - n + 1)]
        if ngrams:
            metrics[f"distinct_{n}"] = Estimate(len(set(ngrams)) / len(ngrams), len(ngrams))
    voted = [record["num_votes"] / len(record["samples"]) for record in records if record["samples"]]
    if voted:
        metrics["votes"] = Estimate(fmean(voted), len(voted))
    return metrics


def _measure_fertility(records: Sequence[dict[str, Any]]) -> Metrics:
    words = sum(count_words(record["completion"]) for record in records)
    tokens = sum(record["num_completion_tokens"] for record in records)
    return {"fertility": Estimate(tokens / words, words)} if words else {}


def measure_fidelity(records: Sequence[dict[str, Any]], identifier: LanguageIdentifier) -> Metrics:
    """Returns how many rationales are in their question's language, and how many in English instead.

    `language_fidelity` and `language_english`, of rationales with at least one letter; the latter of questions that
    are not in English.
    """
    metrics: Metrics = {}
    foreign = [record for record in records if record["language"] != "en"]
    for name, own, tags in (
        ("language_fidelity", records, [record["language"] for record in records]),
        ("language_english", foreign, ["en"] * len(foreign)),
    ):
        hits = identifier.is_in([get_rationale(record) for record in own], tags)
        told = [(hit, record.get("group")) for hit, record in zip(hits, own, strict=True) if hit is not None]
        if told:
            metrics[name] = estimate_share([hit for hit, _ in told], [group for _, group in told])
    return metrics


def measure_against(
    records: Sequence[dict[str, Any]], references: Mapping[str, Mapping[str, Sequence[str]]], bert_model: str | None
) -> Metrics:
    """Returns how alike the rationales are to those of each teacher, as `NAME/TEACHER`.

    `rouge1`, `rouge2`, `rougeL`: the texts' mean F1 (Lin 2004, without stemming); `bleu`: of the corpus, sacrebleu's
    with its 13a tokens and exponential smoothing; `chrf`: of the corpus, sacrebleu's, 6 characters, no words, beta 2
    (Popović 2015); `bert_score`: mean F1 (Zhang et al. 2020). Of several rationales of one teacher the nearest counts
    for ROUGE; BLEU and chrF take them as several references. All are shares of 1. ROUGE and BLEU take each character
    of a script without spaces (Chinese, Japanese, Thai) for a word.
    """
    metrics: Metrics = {}
    teachers = sorted({teacher for own in references.values() for teacher in own})
    for teacher in teachers:
        pairs = [
            (get_rationale(record), list(texts))
            for record in records
            if (texts := references.get(record["question_id"], {}).get(teacher))
        ]
        if not pairs:
            continue
        written, given = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        values = compare_texts(written, given)
        if bert_model is not None:
            found = bert_score(written, [texts[0] for texts in given], model_name_or_path=bert_model)
            values["bert_score"] = torch.as_tensor(found["f1"]).mean().item()
        metrics |= {f"{name}/{teacher}": Estimate(value, len(pairs)) for name, value in values.items()}
    return metrics


def measure_references(records: Sequence[dict[str, Any]]) -> Metrics:
    """Returns what the student thinks of each teacher's rationales, teacher-forced, as `NAME/TEACHER`.

    `perplexity`: exp of the mean negative log-likelihood of all their tokens; `kl`: mean KL of the teacher's next-token
    distribution from the student's, in nats, and `agreement`: share of tokens at which both have the same most probable
    one, over the tokens that cached distributions say something of. n counts tokens.
    """
    scores: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        for score in record["references"] or []:
            scores[score["teacher"]].append(score)
    metrics: Metrics = {}
    for teacher, own in sorted(scores.items()):
        tokens = sum(score["num_tokens"] for score in own)
        nll = -sum(score["log_likelihood"] for score in own) / tokens
        metrics[f"perplexity/{teacher}"] = Estimate(math.exp(nll), tokens)
        cached = [score for score in own if score["kl"] is not None]
        tokens = sum(score["num_compared"] for score in cached)
        for name in ("kl", "agreement"):
            if tokens:
                metrics[f"{name}/{teacher}"] = Estimate(sum(score[name] for score in cached) / tokens, tokens)
    return metrics


def to_json(metrics: Mapping[str, Metrics]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the metrics as plain values: task, name, and an Estimate's fields."""
    return {task: {name: asdict(estimate) for name, estimate in own.items()} for task, own in metrics.items()}


def format_table(metrics: Mapping[str, Metrics]) -> str:
    """Returns a table with a line for each metric and a column for each task."""
    names = list(dict.fromkeys(name for own in metrics.values() for name in own))
    cells = [["", *(f"{task}" for task in metrics)]]
    for name in names:
        cells.append([name, *(format_estimate(own[name]) if name in own else "–" for own in metrics.values())])
    return align_columns(cells)


def format_estimate(estimate: Estimate) -> str:
    """Returns the value, its interval, and n; a share in percent."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g} (n={estimate.n})"
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}] (n={estimate.n})"
