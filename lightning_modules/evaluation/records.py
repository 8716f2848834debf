"""What evaluation keeps of a question: the columns of predictions, and how completions become answers."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from datamodules.answers.extractors import EXTRACTORS, Extractor, extract_neutral, split_answer_sentence
from datamodules.answers.grading import is_correct
from datamodules.answers.replies import cut_run_on
from datamodules.tasks.prompts import Prompt
from datamodules.tasks.questions import Question

# What an option's log-likelihood is divided by: lm-evaluation-harness's acc, acc_norm and acc_bytes.
LIKELIHOODS: dict[str, Callable[[str], int]] = {
    "likelihood": lambda text: 1,
    "likelihood_norm": len,
    "likelihood_bytes": lambda text: len(text.encode()),
}
REFERENCE_SCORE = pa.struct(
    [pa.field("teacher", pa.string())]
    + [pa.field(name, pa.int32()) for name in ("sample", "num_tokens", "num_compared")]
    + [pa.field(name, pa.float64()) for name in ("log_likelihood", "kl", "agreement")]
)


def list_columns(extractors: Iterable[str]) -> pa.Schema:
    """Returns the columns of predictions whose answers these extractors read."""
    names = (*extractors, *LIKELIHOODS)
    return pa.schema(
        [pa.field("arm", pa.string()), pa.field("seed", pa.int32()), pa.field("runtime", pa.string())]
        + [pa.field(name, pa.string()) for name in ("task", "split", "question_id", "group", "language", "gold")]
        + [pa.field("replaced_in_rev2", pa.bool_())]
        + [pa.field(name, pa.string()) for name in ("completion", "finish_reason")]
        + [pa.field(f"answer_{name}", pa.string()) for name in names]
        + [pa.field(f"correct_{name}", pa.bool_()) for name in names]
        + [pa.field("exact_match", pa.bool_())]
        + [pa.field("rationale_length", pa.int32())]
        + [pa.field(name, pa.string()) for name in ("rationale_answer", "sentence_answer")]
        + [pa.field("option_log_likelihoods", pa.list_(pa.float64()))]
        + [pa.field("num_prompt_tokens", pa.int32()), pa.field("num_completion_tokens", pa.int32())]
        + [pa.field("samples", pa.list_(pa.string())), pa.field("num_votes", pa.int32())]
        + [pa.field("references", pa.list_(REFERENCE_SCORE))]
    )


PREDICTION_SCHEMA = list_columns(EXTRACTORS)


def vote(
    texts: list[str], question: Question, extractors: Mapping[str, Extractor]
) -> tuple[dict[str, str | None], int, int]:
    """Returns each extractor's most frequent answer, the first of equally frequent ones.

    Also the number of the first text that has the neutral extractor's, and of how many have it.
    """
    answers = {}
    for name, extract in extractors.items():
        found = [extraction.answer if (extraction := extract(text, question)) else None for text in texts]
        counts: Counter[str | None] = Counter(answer for answer in found if answer is not None)
        answers[name] = max(counts, key=counts.__getitem__) if counts else None
        if name == "neutral":
            place, votes = found.index(answers[name]), counts[answers[name]]
    return answers, place, votes


def choose_options(log_likelihoods: list[float], texts: list[str], question: Question) -> dict[str, str | None]:
    """Returns the letter of the likeliest option, the first of equals, by each of LIKELIHOODS; None without options.

    None, too, where another option has the same text, and so is as likely.
    """
    if not log_likelihoods:
        return dict.fromkeys(LIKELIHOODS)
    chosen: dict[str, str | None] = {}
    for name, size in LIKELIHOODS.items():
        scores = [score / size(text) for score, text in zip(log_likelihoods, texts, strict=True)]
        best = scores.index(max(scores))
        chosen[name] = question.letters[best] if texts.count(texts[best]) == 1 else None
    return chosen


def grade(name: str, answer: str | None, has_options: bool, question: Question) -> bool | None:
    """Returns whether an answer is right; None where gold is unknown, or no option was scored."""
    if question.gold is None or (name in LIKELIHOODS and not has_options):
        return None
    return is_correct(answer, question)


def examine(text: str, question: Question, prompt: Prompt) -> dict[str, Any]:
    """Returns whether a completion ends as it was asked to, and which answers its parts give by themselves.

    `exact_match`: it ends with the prompt's own answer sentence of the gold answer, to the character.
    `rationale_length`: so many of its characters come before the sentence that states its answer, if that is its last
    one; if not, all of them but what it invents after its reply. `rationale_answer` and `sentence_answer`: what the
    neutral extractor reads in the one and in the other part alone; both None where the last sentence states no answer.
    A rationale may hold none.
    """
    exact = None if question.gold is None else text.endswith(prompt.answer_sentence(question, question.gold))
    reply = cut_run_on(text, question)
    rationale, sentence = split_answer_sentence(reply, question) or (reply, "")
    parts = {"rationale_answer": rationale if sentence else "", "sentence_answer": sentence}
    found = {name: extract_neutral(part, question) for name, part in parts.items()}
    return {
        "exact_match": exact,
        "rationale_length": len(rationale),
        **{name: extraction.answer if extraction else None for name, extraction in found.items()},
    }
