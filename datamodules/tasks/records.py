"""A record of anybody's file, read as one question and what was written about it.

What a record holds is told by its fields' names; the first that is there and not null counts:

    question     question, problem, prompt; instruction with input (Alpaca); else the user's turn of the conversation
    choices      choices, options: a list of texts, {letter: text}, {"text": [...], "label": [...]}, or a list of
                 {"label", "text"}; letters printed into the texts are taken off
    gold         gold, else answer, answerKey, expected_answer; where there is `gold`, or no question, `answer` is the
                 rationale's own
    rationales   rationale or rationales (a text, {"text", "answer", "teacher", "thinking"}, a list of these, or, by
                 teacher, {teacher: {"text", "answer"}}), generations (R1 traces), generated_solution, response,
                 completion, Alpaca's output; else the last assistant's turn of messages or conversations (ShareGPT);
                 else the steps before GSM8K's `####`, or a problem's solution

A gold answer is an option's letter (`B`, `b`, `(B)`, `B) dog`), its label, its text, or, as a whole number, its index
from 0. A whole number that is also the text of another option is its text, unless the file's other answers are indices;
where they do not tell, it is refused. Without options it is a number, an expression (`expression: true`, which is so of
a `problem`), or, with the options that are understood, true, false, yes or no.

What was thought stands between marks, or in `thinking`, `reasoning_content` or `reasoning` beside a text; why the text
ended, in `finish_reason` or `stop_reason`, of which `length`, `max_tokens` and their like say that it was cut off.
"""

import json
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datamodules.files.atomic import hash_text
from datamodules.files.field_types import check_text, shorten
from datamodules.text.expressions import find_boxed

LETTERS = string.ascii_uppercase
QUESTION = ("question", "problem", "prompt")
GOLD = ("answer", "answerKey", "expected_answer")
TEACHER = ("teacher", "model")
THINKING = ("thinking", "reasoning_content", "reasoning")
RATIONALES = ("rationale", "rationales", "generations", "generated_solution", "response", "completion")
CONVERSATION = ("messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"}
# How records call the reason why a text ended, and APIs that it was cut off.
_REASON = ("finish_reason", "stop_reason")
_CUT = ("length", "max_tokens", "max_length", "max_output_tokens", "model_length", "max_new_tokens")
_SAME = ("id", "task", "split", "language", "group", "parallel", "asks", "replaced_in_rev2", "expression")
# Of which question of another set a question is the translation: its own field, or MGSM's and MSVAMP's.
_ORIGINAL = ("original", "gsm8k_id", "svamp_id")
# OpenThoughts' marks around what follows its thoughts.
_SOLUTION_MARKS = re.compile(r"<\|(?:begin|end)_of_solution\|>")
_LETTERED = re.compile(r"\(?([A-Za-z])(?:[).:]+\s*(.*))?", re.DOTALL)


class AmbiguousIndexError(ValueError):
    """A whole number that is the index of one option and the text of another."""


@dataclass(frozen=True)
class Written:
    """A rationale as a record has it.

    Attributes:
        text: The reasoning; what was thought before may stand in it, between marks.
        teacher: Who wrote it; None where the record does not say.
        thinking: What was thought, where that is a field of its own.
        has_answer: Whether the record has the answer that the text reached, if only null.
        answer: That answer, as it is written.
        reason: Why the text ended, as the record says; `length` where it was cut off.
    """

    text: str
    teacher: str | None = None
    thinking: str = ""
    has_answer: bool = False
    answer: Any = None
    reason: str | None = None


@dataclass(frozen=True)
class Record:
    """A record, read.

    Attributes:
        question: Fields of design.md's question; `id` is None where the record has none, `question` where it has only
            rationales, `gold` is an option's letter where there are options.
        rationales: What was written about it.
        used: The fields that were read.
    """

    question: dict[str, Any]
    rationales: tuple[Written, ...]
    used: frozenset[str]


class _Fields:
    """Hands out a record's fields, and notes which."""

    def __init__(self, record: dict[str, Any]):
        self.record, self.used = record, set[str]()

    def take(self, *names: str) -> Any:
        """Returns the first of these fields that is there and not null; None without any."""
        for name in names:
            if self.record.get(name) is not None:
                self.used.add(name)
                return self.record[name]
        return None


def squeeze(text: str) -> str:
    """Returns a text in Unicode's composed form, with one space wherever there is white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def make_id(text: str, choices: Sequence[str] | None) -> str:
    """Returns the id of a question that has none: a hash of its text and options, the same in every stage."""
    return hash_text(json.dumps([squeeze(text), [squeeze(choice) for choice in choices or ()]], ensure_ascii=False))


def strip_letters(choices: list[str]) -> list[str]:
    """Returns the options' texts without letters, where all of them begin with their own."""
    lettered = [re.match(rf"\(?{LETTERS[number]}\)\s*", choice) for number, choice in enumerate(choices[:26])]
    if not choices or not all(lettered):
        return choices
    return [choice[match.end() :] for choice, match in zip(choices, lettered, strict=True) if match]


def read_record(record: dict[str, Any], ints_are_indices: bool | None = None) -> Record:
    """Reads a record's question and rationales.

    Args:
        record: Its fields.
        ints_are_indices: What a whole number is that is the index of one option and the text of another; None refuses.

    Raises:
        AmbiguousIndexError: See above.
        ValueError: A field is of a wrong type.
    """
    fields = _Fields(record)
    own = {name: fields.take(name) for name in _SAME} | {"original": fields.take(*_ORIGINAL)}
    if (identifier := fields.take("question_id")) is not None:
        own["id"] = identifier
    if type(own["id"]) is int:
        own["id"] = str(own["id"])
    text = fields.take(*QUESTION)
    if text is None and (text := fields.take("instruction")) is not None and (more := fields.take("input")):
        text = f"{text}\n\n{more}"
    choices, labels = _read_choices(fields.take("choices", "options") or None)
    gold, answer = fields.take("gold"), fields.take(*GOLD)
    # Of a record without a question of its own, which is another file's, the answer is the rationale's.
    is_own = gold is not None or (text is None and not any(record.get(name) for name in CONVERSATION))
    answers = {"has_answer": True, "answer": answer} if is_own and answer is not None else {}
    gold = answer if gold is None and not is_own else gold
    rationales = _read_rationales(fields, answers)
    if (name := next((name for name in CONVERSATION if record.get(name) is not None), None)) is not None:
        asked, replied = _read_conversation(record[name], name, text is None)
        text = asked if text is None else text
        if not rationales or replied is None:
            rationales = [] if replied is None else [_write(fields, replied, answers)]
        fields.used.add(name)
    if choices is None and isinstance(gold, str) and "####" in gold:
        steps, _, gold = gold.rpartition("####")
        rationales = rationales or [_write(fields, {"text": re.sub(r"<<[^<>]*>>", "", steps), "answer": gold}, {})]
        gold = gold.strip()
    if "problem" in fields.used and choices is None:
        own["expression"] = True if own["expression"] is None else own["expression"]
        solution = fields.take("solution")
        gold = find_boxed(solution) if gold is None and isinstance(solution, str) else gold
        rationales = rationales or ([] if solution is None else [_write(fields, solution, answers)])
    if choices is None and not own["expression"] and str(gold).casefold() in ("true", "false", "yes", "no"):
        choices = ["Yes", "No"] if str(gold).casefold() in ("yes", "no") else ["True", "False"]
    if isinstance(choices, list) and choices:
        gold = name_option(gold, choices, labels, ints_are_indices)
    question = {**own, "question": text, "choices": choices, "gold": gold}
    return Record(question, tuple(rationales), frozenset(fields.used))


def _read_choices(value: Any) -> tuple[Any, list[str]]:
    """Returns the options' texts, where they are any, and what else names them, in order."""
    labels: list[Any] = []
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value, labels = value["text"], value.get("label") or value.get("labels") or []
    elif isinstance(value, dict):
        # A parquet file gives every row all letters.
        own = {label: text for label, text in value.items() if text is not None}
        value, labels = [*own.values()], [*own]
    elif isinstance(value, list) and value and all(isinstance(choice, dict) for choice in value):
        labels = [choice.get("label") for choice in value]
        value = [choice.get("text") for choice in value]
    if labels and (not isinstance(labels, list) or len(labels) != len(value)):
        raise ValueError(f"`choices` has {len(value)} texts, but {shorten(labels)} as labels")
    if isinstance(value, list) and all(isinstance(choice, str) for choice in value):
        value = strip_letters(value)
    return value, [str(label) for label in labels]


def name_option(
    gold: Any, choices: Sequence[Any], labels: Sequence[str] = (), ints_are_indices: bool | None = None
) -> Any:
    """Returns the letter of the option that an answer names by letter, label, text or index; else the answer as it is.

    Raises:
        AmbiguousIndexError: It is the index of one option and the text of another, and nothing tells which is meant.
    """
    texts = [str(choice) for choice in choices]
    if str(gold) in labels:
        return LETTERS[labels.index(str(gold))] if labels.index(str(gold)) < len(LETTERS) else gold
    if isinstance(gold, float) and gold.is_integer() and str(gold) not in texts:
        gold = int(gold)
    if type(gold) is int:
        named, indexed = str(gold) in texts, 0 <= gold < min(len(texts), len(LETTERS))
        if named and indexed and texts[gold] != str(gold) and ints_are_indices is None:
            raise AmbiguousIndexError(
                f"the answer {gold} is the text of option {LETTERS[texts.index(str(gold))]} and the index (from 0) of "
                f'option {LETTERS[gold]}; write the letter, or "{gold}" in quotes for the text'
            )
        return LETTERS[gold] if indexed and (not named or ints_are_indices) else gold
    if not isinstance(gold, str) or gold in texts:
        return gold
    same = [index for index, text in enumerate(texts) if squeeze(text).casefold() == squeeze(gold).casefold()]
    if len(same) == 1 and same[0] < len(LETTERS):
        return LETTERS[same[0]]
    if (match := _LETTERED.fullmatch(gold.strip())) and (letter := match[1].upper()) in LETTERS[: len(texts)]:
        own = texts[LETTERS.index(letter)]
        if not match[2] or squeeze(match[2]).casefold().rstrip(".") == squeeze(own).casefold().rstrip("."):
            return letter
    return gold


def find_index_convention(records: Iterable[dict[str, Any]]) -> bool | None:
    """Returns whether the whole numbers among a file's answers are indices; None where the file does not tell."""
    for record in records:
        try:
            fields = _Fields(record)
            choices, labels = _read_choices(fields.take("choices", "options"))
        except ValueError:
            continue
        gold = fields.take("gold", *GOLD)
        if type(gold) is int and isinstance(choices, list) and str(gold) not in labels:
            named, indexed = str(gold) in map(str, choices), 0 <= gold < len(choices)
            if named != indexed:
                return indexed
    return None


def _read_rationales(fields: _Fields, answers: dict[str, Any]) -> list[Written]:
    value = fields.take(*RATIONALES)
    if value is None and "instruction" in fields.used:
        value = fields.take("output")
    if value is None:
        return []
    if "rationales" in fields.used and isinstance(value, dict):
        return [_read_named(teacher, entry) for teacher, entry in value.items() if entry is not None]
    entries = value if isinstance(value, list) else [value]
    whole = fields.take("is_reasoning_complete") if "generations" in fields.used else None
    written = [_write(fields, entry, answers) for entry in entries if entry is not None]
    if isinstance(whole, list) and len(whole) == len(written) == len(entries):
        written = [
            replace(own, reason="length") if is_whole is False else own
            for own, is_whole in zip(written, whole, strict=True)
        ]
    return written


def _read_named(teacher: str, entry: Any) -> Written:
    """Reads a published collection's entry, which has its teacher's name before it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError(f"rationale of {teacher!r} has no text")
    if not isinstance(entry.get("answer"), str | int | float | None):
        raise ValueError(f"answer of {teacher!r} must be a text, a number or null")
    return Written(entry["text"], teacher, has_answer="answer" in entry, answer=entry.get("answer"))


def _write(fields: _Fields, entry: Any, answers: dict[str, Any]) -> Written:
    """Reads a text, or an object with one; what it does not say of itself, the record does."""
    own = _Fields(entry if isinstance(entry, dict) else {"text": entry})
    text = own.take("text", "rationale", "content")
    if text is None:
        raise ValueError(f"a rationale without `text`; it has {', '.join(own.record) or 'no fields'}")
    teacher = own.take(*TEACHER) or fields.take(*TEACHER)
    thinking = own.take(*THINKING) or fields.take(*THINKING) or ""
    reason = own.take(*_REASON) or fields.take(*_REASON)
    if isinstance(reason, str):
        reason = "length" if reason.casefold() in _CUT else reason.casefold()
    if (answer := own.take("answer")) is not None:
        answers = {"has_answer": True, "answer": answer}
    if answers and not isinstance(answers["answer"], str | int | float):
        raise ValueError(f"`answer` must be a text or a number, found {type(answers['answer']).__name__}")
    return Written(
        text=_SOLUTION_MARKS.sub("", check_text(text, "rationale", may_be_empty=True)),
        teacher=None if teacher is None else check_text(teacher, "teacher"),
        thinking=check_text(thinking, "thinking", may_be_empty=True),
        reason=reason if isinstance(reason, str) else None,
        **answers,
    )


def _read_conversation(value: Any, name: str, is_question: bool) -> tuple[str | None, dict[str, Any] | None]:
    """Returns what a user asks before an assistant's last turn, and that turn; None for what is not there.

    Raises:
        ValueError: It is no list of turns; or several questions are asked, of which the last has no text of its own.
    """
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(f"`{name}` must be a list of turns, each an object with role and content, or from and value")
    turns = [_read_turn(turn, name) for turn in value]
    replies = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    asked = [turn["text"] for turn in turns[: replies[-1] if replies else None] if turn["role"] == "user"]
    if is_question and len(asked) > 1:
        raise ValueError(
            f"`{name}` asks {len(asked)} questions, and a rationale answers one; leave one exchange, or give the "
            "question itself as `question`"
        )
    return asked[-1] if asked else None, turns[replies[-1]] if replies else None


def _read_turn(turn: dict[str, Any], name: str) -> dict[str, Any]:
    role, content = turn.get("role") or turn.get("from"), turn.get("content")
    content = turn.get("value") if content is None else content
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    thinking = {key: turn[key] for key in THINKING if turn.get(key)}
    if not isinstance(role, str):
        raise ValueError(f"`{name}` has a turn without a role (role or from)")
    role = _ROLES.get(role.casefold(), role.casefold())
    if not isinstance(content, str) and not thinking and role in ("user", "assistant"):
        raise ValueError(f"`{name}` has a turn of {role} without a text (content or value)")
    return {"role": role, "text": content if isinstance(content, str) else "", **thinking}
