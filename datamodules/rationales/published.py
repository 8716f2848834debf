"""Published collections of rationales, read from a local clone into rationales of our own questions.

Each collection has a reader of its files as they are. A published rationale finds its question by the question's text,
with or without the options; one that finds none, or several, is left out and counted, as is all that is cleaned.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.answers.extractors import extract_neutral, find_stated_answer
from datamodules.answers.grading import is_correct
from datamodules.files.atomic import read_records
from datamodules.files.field_types import check_id, check_text, shorten
from datamodules.files.parsing import parse_json, read_json
from datamodules.model_cards import find_family
from datamodules.rationales.store import Rationale, find_repeats, part_thinking
from datamodules.tasks.question_index import QuestionIndex
from datamodules.tasks.questions import Question
from datamodules.tasks.records import read_record
from datamodules.text.expressions import normalize_expression
from datamodules.text.model_json import ReplyError, read_reply
from datamodules.text.numbers import calculate, write_value
from datamodules.text.thinking import join_thinking


@dataclass(frozen=True)
class Published:
    """A rationale as a collection has it, cleaned.

    Attributes:
        question: The question's text, with or without its options.
        teacher: Who wrote it.
        text: The reasoning.
        gold_conditioned: Whether the teacher was shown the gold answer; None if unknown.
        answer: The answer that the collection records beside the text, if it does.
        cut: Whether the text ends in the middle.
    """

    question: str
    teacher: str
    text: str
    gold_conditioned: bool | None
    answer: str | None = None
    cut: bool = False


@dataclass(frozen=True)
class Collection:
    """A published collection.

    Attributes:
        files: Glob of its files in a clone.
        licence: Of the repository; what a provider's model wrote is under the provider's terms, too.
        read: Yields the rationales of one file, and counts what it cleans or leaves out.
    """

    files: str
    licence: str
    read: Callable[[Path, Counter[str]], Iterator[Published]]


def _is_cut(text: str) -> bool:
    return not re.search(r"[.!?)\]}\"'”’`*$]\s*$", text)


def _clean(pattern: str, replacement: str, text: str, counts: Counter[str], what: str) -> str:
    """Substitutes a pattern, and counts the text if that changed it."""
    cleaned = re.sub(pattern, replacement, text)
    counts[what] += cleaned != text
    return cleaned


def _read_eit(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """EIT-NLP/Distilling-CoT-Reasoning: one file for each task, teacher and granularity (L1 short, L6 long)."""
    name = path.stem.lower()
    writers = {"chatgpt": "gpt-4o", "gemini": "gemini-1.5-flash", "llama": "llama-3-70b", "human": "human"}
    key = next((key for key in writers if key in name), None)
    # Files of answers alone, and of several teachers' texts mixed.
    if key is None or "mix" in name:
        counts["files without one teacher's rationales"] += 1
        return
    level = re.search(r"level_?(\d)", name)
    form = re.search(r"bsm|rar|sym", name)
    variants = ["L" + level.group(1)] if level else []
    variants += [form.group()] if form else []
    variants += [re.sub("_ranked", "", name[name.index("0_shot") :])] if "0_shot" in name else []
    teacher = "/".join([writers[key], *variants])
    for record in read_json(path):
        text = record.get("solution" if key == "human" else f"{key}_output") or record["output"]
        yield Published(
            question=record.get("problem") or record["instruction"],
            teacher=teacher,
            text=_clean(r"</?(?:Solution Path|Rationale)>", "", text, counts, "tags removed"),
            gold_conditioned="without_gt" not in name,
            # MATH's `output` is the gold answer, which only the human solution is sure to reach.
            answer=record["output"] if "problem" in record and key == "human" else None,
        )


def _read_tinyllm(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """YikunHan42/TinyLLM: FLAN-T5's and Llama-2's rationales and the question, in one text."""
    for text in read_json(path):
        flan, _, rest = text.partition("\n\nQ: ")
        question, _, llama = rest.partition(" llama rationale: ")
        yield Published(question, "flan-t5", flan, gold_conditioned=True)
        if llama:
            yield Published(question, "llama-2", llama, gold_conditioned=True, cut=_is_cut(llama))


def _read_palm(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """google-research/distilling-step-by-step: PaLM 540B's texts, in the order of the split's own file of questions."""
    dataset = path.parents[1].name
    split, _, number = path.stem.partition("_CoT_")
    # What the repository calls test is its validation split; the files before this one hold the questions before.
    questions = [record for _, record in _read_lines(path.parents[1] / f"{dataset}_{split}.json")]
    start = sum(len(read_json(path.with_name(f"{split}_CoT_{before}.json"))) for before in range(int(number)))
    texts = read_json(path)
    if start + len(texts) > len(questions):
        raise ValueError(f"{path}: more rationales than {dataset}_{split}.json has questions ({len(questions)})")
    for record, text in zip(questions[start:], texts, strict=False):
        own = _clean(r"(?s)\n\nQ:.*", "", text, counts, "invented next questions cut off")
        # SVAMP's answers are formulas: "The answer is (6 * 14) + 11."
        formula = re.search(r"[Tt]he answer is ([-+*/(). \d]+?)\.?$", own) if dataset == "svamp" else None
        value = calculate(formula.group(1)) if formula else None
        yield Published(
            question=record.get("question") or record["input"],
            teacher="palm-540b",
            text=own,
            gold_conditioned=False,
            answer=None if value is None else write_value(value),
            cut=_is_cut(own),
        )


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not `splitlines`, which also splits at characters that a text may hold, such as U+2028.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def _read_chatqa(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """cnalty/distilling-step-by-step-rag: Llama3-ChatQA-1.5-8B, with examples retrieved or drawn at random."""
    teacher = "llama3-chatqa-1.5-8b/" + ("random" if "random" in path.stem else "rag")
    for record in read_json(path):
        text = _clean(r"^\s*Rationale:\s*", "", record["gen_label"], counts, "headings removed")
        yield Published(record["input"], teacher, text, gold_conditioned=False)


def _read_zeroeval(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """WildEval/ZeroEval: many models' greedy answers to one prompt, as JSON with a reasoning and an answer."""
    for record in read_json(path):
        for output in record["output"]:
            try:
                text, answer = read_reply(output)
            except ReplyError as error:
                counts[f"left out: {error} ({path.stem})"] += 1
                continue
            yield Published(
                question=record.get("question") or record["problem"],
                teacher=path.stem,
                text=text,
                gold_conditioned=False,
                answer=answer,
            )


def _read_mentor(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """2hojae/mentor-kd: GPT-3.5's chains, kept where right, and those of mentors that were trained on them."""
    mentor = {"t5_large": "t5-large-mentor", "flan-t5_large": "flan-t5-large-mentor"}.get(path.parent.name)
    for record in read_json(path):
        answer = record.get("completion") or record["answer"]
        yield Published(record["input"], mentor or "gpt-3.5-turbo", record["chain"], False, str(answer))


def _read_gsm8k(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """openai/grade-school-math: solutions of GPT-3 6B and 175B, finetuned, and the best of many by a verifier."""
    for _, record in read_records(path):
        for name, entry in record.items():
            if not isinstance(entry, dict):
                continue
            size, _, method = name.partition("_")
            text = _clean(r"<<[^<>]*>>", "", entry["solution"], counts, "calculator notes removed")
            own, line, answer = text.rpartition("\nA: ")
            counts["answer lines made answers"] += bool(line)
            yield Published(
                question=record["question"],
                teacher=f"gpt-3-{size}/{method}",
                text=own if line else text,
                gold_conditioned=False,
                answer=answer if line else None,
                cut=not line,
            )


def _read_jsonl(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """Lines of `question`, `teacher`, `text`, `gold_conditioned` (null if unknown), and perhaps `answer`."""
    for where, record in read_records(path):
        if missing := [name for name in ("question", "teacher", "text", "gold_conditioned") if name not in record]:
            raise ValueError(f"{where}: rationale without field {', '.join(missing)}")
        if not isinstance(record["gold_conditioned"], bool | None):
            shown = shorten(record["gold_conditioned"])
            raise ValueError(f"{where}: `gold_conditioned` must be true, false or null, found {shown}")
        answer = record.get("answer")
        if not isinstance(answer, str | int | float | None):
            raise ValueError(f"{where}: `answer` must be a text, a number or null, found {shorten(answer)}")
        yield Published(
            record["question"],
            record["teacher"],
            record["text"],
            record["gold_conditioned"],
            None if answer is None else str(answer),
        )


def _read_anybody(path: Path, counts: Counter[str]) -> Iterator[Published]:
    """Records as `tasks.records` describes them: messages, ShareGPT, Alpaca, R1 traces."""
    for where, record in read_records(path):
        try:
            own = read_record(record, ints_are_indices=True)
        except ValueError as error:
            counts[f"left out: {error}"] += 1
            continue
        for written in own.rationales:
            if own.question["question"] is None:
                raise ValueError(f"{where}: rationale without a question")
            yield Published(
                question=own.question["question"],
                teacher=written.teacher or path.name.split(".")[0],
                text=join_thinking(written.thinking, written.text),
                gold_conditioned=None,
                answer=None if written.answer is None else str(written.answer),
                cut=written.reason == "length",
            )


COLLECTIONS = {
    "eit": Collection("data/*.json", "Apache-2.0", _read_eit),
    "tinyllm": Collection("datasets/*/llm/*_CoT_*.json", "Apache-2.0", _read_tinyllm),
    "palm": Collection("datasets/*/palm/*_CoT_*.json", "Apache-2.0", _read_palm),
    "chatqa": Collection("datasets/*/*_llama3.json", "Apache-2.0", _read_chatqa),
    "zeroeval": Collection("result_dirs/[gm][sa]*/*.json", "Apache-2.0", _read_zeroeval),
    "mentor_kd": Collection("data/[ma]*/**/*3*.json", "Apache-2.0", _read_mentor),
    "gsm8k_solutions": Collection("grade_school_math/data/example_model_solutions.jsonl", "MIT", _read_gsm8k),
    "records": Collection("**/*.json*", "unstated", _read_anybody),
    "jsonl": Collection("**/*.jsonl*", "unstated", _read_jsonl),
}


def _has_texts(item: Published) -> bool:
    """Whether question, teacher and text are texts that a file can hold, and the teacher has a name of one line."""
    try:
        check_text(item.question, "question", may_be_empty=True)
        check_text(item.text, "text", may_be_empty=True)
        check_id(item.teacher, "teacher")
    except ValueError:
        return False
    return True


def _find_answer(item: Published, question: Question) -> str | None:
    """Returns the answer that is recorded beside a text, or else that the text ends up with."""
    if item.answer is None:
        extraction = extract_neutral(item.text, question)
    elif question.expression:
        extraction = find_stated_answer(item.answer, question)
        return extraction.answer if extraction else normalize_expression(item.answer) or None
    else:
        extraction = extract_neutral(f"The answer is {item.answer}.", question)
    return extraction.answer if extraction else None


def import_rationales(
    name: str, clone: Path, questions: Iterable[Question], files: str | None = None
) -> tuple[list[Rationale], dict[str, bool], Counter[str]]:
    """Reads a collection's rationales of these questions.

    Args:
        name: One of `COLLECTIONS`.
        clone: Local clone of its repository; for jsonl, any folder.
        questions: What the rationales are about.
        files: Glob below the clone, for some of the collection's files; None reads all.

    Returns:
        The rationales, by question and teacher; for each teacher whether it was shown the gold answer, where that
        is known; and how many texts were cleaned, or left out, and why.

    Raises:
        ValueError: There are no such files, or one is malformed.
    """
    if name not in COLLECTIONS:
        raise ValueError(f"collection {name!r} is unknown; there are: {', '.join(COLLECTIONS)}")
    collection = COLLECTIONS[name]
    pattern = files or collection.files
    paths = sorted(clone.glob(pattern))
    if not paths:
        raise ValueError(f"{clone}: no files {pattern}")
    index, counts = QuestionIndex(questions), Counter[str]()
    rationales: list[Rationale] = []
    samples: Counter[tuple[str, str]] = Counter()
    conditions: dict[str, bool] = {}
    for path in paths:
        try:
            published = list(collection.read(path, counts))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not as the collection {name} has it: {error!r}") from None
        for item in published:
            counts["published"] += 1
            if not _has_texts(item):
                counts["left out: not a text"] += 1
                continue
            found = index.find(item.question)
            if len(found) != 1 or not item.text.strip():
                reason = "of unknown questions" if not found else "of ambiguous questions" if found[1:] else "empty"
                counts[f"left out: {reason}"] += 1
                continue
            [question] = found
            answer = _find_answer(item, question)
            correct = is_correct(answer, question)
            counts["cut in the middle"] += item.cut
            counts["right in another notation than the gold answer"] += correct is True and answer != question.gold
            rationales.append(
                part_thinking(
                    Rationale(
                        question_id=question.id,
                        task=question.task,
                        split=question.split,
                        teacher=item.teacher,
                        family=find_family(item.teacher),
                        sample=samples[question.id, item.teacher],
                        text=item.text.strip(),
                        answer=answer,
                        correct=correct,
                        finish_reason="length" if item.cut else "imported",
                        prompt_id="imported",
                    )
                )
            )
            samples[question.id, item.teacher] += 1
            if item.gold_conditioned is not None:
                conditions[item.teacher] = item.gold_conditioned
    counts["repeat another sample word by word"] = len(find_repeats(rationales))
    rationales.sort(key=lambda rationale: (rationale.question_id, rationale.teacher, rationale.sample))
    return rationales, conditions, +counts
