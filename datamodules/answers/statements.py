"""What a text states as its answer ("the answer is D", "D is correct", "#### 72"), whatever the teacher's style."""

import re
from collections.abc import Iterator

from datamodules.answers.free_answers import find_free_statements
from datamodules.answers.options import list_forms, match_option
from datamodules.tasks.questions import Question
from datamodules.text.sentences import Extraction, squash

_ADJECTIVE = "correct|right|best|better|final|only|likely|suitable|appropriate|logical|plausible|reasonable|accurate"
# What announces an option. A list's heading, "Answer choices:" or "Option A:", does not.
_ANCHOR = re.compile(
    r"(?P<direct>\\(?:boxed|fbox)\s*(?=\{)|<answer>|\bI(?:'d| would| will)? (?:choose|pick|select|go with) )"
    r"|(?<!<)\banswers?\b(?! (?:choice|option)(?:s| \(?[a-z]\b))"
    rf"|\b(?:{_ADJECTIVE}) (?:option|choice|solution)\b"
    r"|\bthe (?:option|choice|solution)\b(?= (?:is|would|must|should)\b)"
    r"|^[ *_#]*(?:option|choice)(?=[*_]*:)",
    re.IGNORECASE | re.MULTILINE,
)
# (\u2018 to \u201d are curly quotes.)
# Between the anchor and the answer: a colon follows the anchor at once, a verb may come later in the sentence.
_COLON = re.compile(r"[*_\s]*[\"']?(?:\([^()\n]*\)\s*)?[*_]*[:=]\s*")
_VERB = re.compile(
    r"(?<!which )\b(?:is|was|(?P<plural>are)|(?:would|must|should|will|could|has to) be)\b\s*:?\s*", re.IGNORECASE
)
_NOT_BUT = re.compile(r"not\b[^.,;\n]{1,60}?,?\s+but\s+(?:rather\s+|instead\s+)?(?!not\b)", re.IGNORECASE)
_NO_LIST = re.compile(r"[ \t\"'*)\].]*(?:$|\n(?!\s*[(*]*[A-Za-z][).:]))")
_CLAUSE = re.compile(r"(?:[^.\n]|\.(?=\d)){0,80}")
# "Option D is correct", "(D) Venice is the most likely answer"; not "is not the answer", "is the worst option".
_VERDICT = re.compile(
    r"[*_\"'`\u201d\u2019]*\s+(?:is|(?P<plural>are)|(?:would|must|should) be)\s+"
    r"(?:(?!(?:a|an|not|no|wrong|worst|least|less|never|hardly|partly|partially)\b|un|in(?!deed))\w+\s+){0,4}?"
    rf"(?:correct\b|(?<=the )right\b|(?<=the )answers?\b|(?:{_ADJECTIVE}) (?:answer|option|choice)s?\b)",
    re.IGNORECASE,
)
_SUBJECT_LETTER = re.compile(
    r"(?:(?:\b(?i:options?|choices?|answers?|letters?)\s+[\"'*(\[]*|[(\[])([A-Za-z])|(?<![\w'])([A-Z]))"
    r"[)\].*\"']*$"
)
_SUBJECT_TEXT = re.compile(r"(?<!\w)([A-Z])[)\].:][\s*\"']*([^\n]+)$")
# Before a verdict's subject: another one that shares the verdict, or that it is denied of.
_SHARED = re.compile(
    r"[\w)\]\"'*]\s*(?:,?\s*\b(?:and|or|nor)\b|[/&])\s*(?:option |choice |answer )?[\"'*(\[]*$", re.IGNORECASE
)
_DENIED = re.compile(r"\b(?:neither|nor)\b[^.;]*$", re.IGNORECASE)


def _find_option_statements(text: str, question: Question) -> Iterator[Extraction]:
    """Yields what is announced as the answer ("the answer is D"), in the text's order."""
    for anchor in _ANCHOR.finditer(text):
        if anchor.group("direct"):
            starts = [(anchor.end(), False)]
        elif colon := _COLON.match(text, anchor.end()):
            starts = [(colon.end(), False)]
        else:
            clause = _CLAUSE.match(text, anchor.end())
            assert clause is not None
            # The clause's last word may be the verb, so that the answer lies on the next line.
            verbs = _VERB.finditer(text, anchor.end(), clause.end())
            starts = [(verb.end(), verb["plural"] is not None) for verb in verbs]
        for start, is_plural in starts:
            denied = _NOT_BUT.match(text, start)
            match = match_option(text, denied.end() if denied else start, question)
            # "The answers are" may also head a list.
            if match and not (is_plural and match[0] and not _NO_LIST.match(text, match[2])):
                letter, rule, end = match
                yield Extraction(letter, rule, anchor.start(), end)
                break


def _find_verdicts(text: str, question: Question) -> Iterator[Extraction]:
    """Yields the options that are called the answer ("D is correct"), in the text's order."""
    forms = list_forms(question)
    texts = {form for form, _ in forms}
    for verdict in _VERDICT.finditer(text):
        line = text[: verdict.start()].rpartition("\n")[2]
        start = verdict.start() - len(line)
        subject = _SUBJECT_TEXT.search(line)
        if subject is None or squash(subject.group(2)) not in texts:
            subject = _SUBJECT_LETTER.search(line)
        letter = next(filter(None, subject.groups())).upper() if subject else ""
        rule, begin, place = "stated letter", verdict.start(), len(line)
        if subject and letter in question.letters:
            begin, place = start + subject.start(), subject.start()
        else:
            rule, squashed = "stated text", f" {squash(line)}"
            found = next(((form, letters) for form, letters in forms if squashed.endswith(f" {form}")), ("", set()))
            letter = next(iter(found[1])) if len(found[1]) == 1 else ""
            place = max(line.casefold().rfind(found[0]), 0)
            if not letter:
                continue
        if _SHARED.search(line[:place]):
            if _DENIED.search(line[:place]):
                continue
            if _names_another(line[:place], letter, question, forms):
                letter = ""
        if letter and verdict["plural"]:
            continue
        yield Extraction(letter, rule, begin, verdict.end())


def _names_another(before: str, letter: str, question: Question, forms: list[tuple[str, set[str]]]) -> bool:
    """Whether what stands before "and" or "or" and an option ends with another option."""
    shared = _SHARED.search(before)
    assert shared is not None
    earlier = before[: shared.start() + 1]
    subject = _SUBJECT_LETTER.search(earlier + before[shared.start() + 1 :][:1].strip())
    if subject and (name := next(filter(None, subject.groups())).upper()) in question.letters:
        return bool(name != letter)
    squashed = f" {squash(earlier)}"
    return any(squashed.endswith(f" {form}") and letter not in letters for form, letters in forms)


def _list_all(text: str, question: Question) -> list[Extraction]:
    if question.choices is None:
        return list(find_free_statements(text, question))
    return [*_find_option_statements(text, question), *_find_verdicts(text, question)]


def list_statements(text: str, question: Question) -> list[Extraction]:
    """Returns all statements of an answer: what is announced as it, then what is called it."""
    return [found for found in _list_all(text, question) if found.answer]


def find_last_statement(text: str, question: Question) -> Extraction | None:
    """Returns the last statement of an answer, the one that counts; its answer is empty if it names several."""
    return max(_list_all(text, question), key=lambda extraction: extraction.end, default=None)
